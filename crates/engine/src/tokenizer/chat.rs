//! A model's chat template: messages in, the text that the model was trained on out.
use std::ops::Range;

use minijinja::{Value, context};
use serde::{Deserialize, Serialize};

use super::template_env::{environment, explain, without_generation_tags};
use crate::{Error, Result};

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// As templates spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A chat template in Jinja, as `tokenizer_config.json` and GGUF metadata hold it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Reads a template; `bos` and `eos` are the texts of those tokens, for templates that write them.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let source = without_generation_tags(source);
        environment(0)
            .template_from_str(&source)
            .map_err(|e| Error::Unsupported(format!("the model's chat template cannot be used: {}", explain(&e))))?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
        Ok(Self { source, bos: text(bos), eos: text(eos) })
    }

    /// Renders a conversation; `add_generation_prompt` ends it with the beginning of an answer.
    ///
    /// The text says nothing about who wrote what: to encode it, use [`Tokenizer::encode_chat`](super::Tokenizer::encode_chat).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let contents = messages.iter().map(|message| message.content.as_str());
        self.render_contents(messages, contents, add_generation_prompt)
    }

    fn render_contents<'m>(
        &self,
        messages: &[Message],
        contents: impl Iterator<Item = &'m str> + Clone,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let len: usize = contents.clone().map(str::len).sum();
        let env = environment(len);
        let refused = |e: minijinja::Error| {
            Error::Request(format!("the model's chat template refused the conversation: {}", explain(&e)))
        };
        let template = env.template_from_str(&self.source).map_err(refused)?;
        let turns = messages.iter().zip(contents);
        let turns: Vec<Value> =
            turns.map(|(message, content)| context! { role => message.role.as_str(), content => content }).collect();
        // Tools and documents are passed as "none", as Hugging Face's library does.
        let context = context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        template.render(context).map_err(refused)
    }

    /// Renders a conversation and says which bytes come from messages and must not become part of a control token:
    /// `dangerous` finds such characters in a content.
    ///
    /// A template does more with contents than to copy them (it trims, splits, searches), so they cannot be replaced by
    /// placeholders. Instead a mark that occurs nowhere else follows each dangerous character through the template and is
    /// taken out afterwards. A content without dangerous characters goes through untouched.
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        dangerous: impl Fn(&str) -> Vec<Range<usize>>,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let found: Vec<_> = messages.iter().map(|message| dangerous(&message.content)).collect();
        if found.iter().all(Vec::is_empty) {
            return Ok((self.render(messages, add_generation_prompt)?, vec![]));
        }
        let mark = self.unused_char(messages)?;
        let marked: Vec<String> = messages
            .iter()
            .zip(&found)
            .map(|(message, found)| {
                let mut marked = String::with_capacity(message.content.len() + found.len() * mark.len_utf8());
                let mut done = 0;
                for range in found {
                    marked.push_str(&message.content[done..range.end]);
                    marked.push(mark);
                    done = range.end;
                }
                marked.push_str(&message.content[done..]);
                marked
            })
            .collect();
        let rendered = self.render_contents(messages, marked.iter().map(String::as_str), add_generation_prompt)?;
        let mut text = String::with_capacity(rendered.len());
        let mut untrusted: Vec<Range<usize>> = vec![];
        for c in rendered.chars() {
            if c != mark {
                text.push(c);
            } else if let Some(last) = text.chars().next_back() {
                let range = text.len() - last.len_utf8()..text.len();
                // A template may bring two marks together by taking out what stood between them.
                if untrusted.last() != Some(&range) {
                    untrusted.push(range);
                }
            }
        }
        Ok((text, untrusted))
    }

    /// A character that occurs neither in the template nor in a message: one that Unicode sets aside for use inside programs.
    fn unused_char(&self, messages: &[Message]) -> Result<char> {
        let texts = || [&self.source, &self.bos, &self.eos].into_iter().chain(messages.iter().map(|m| &m.content));
        ('\u{FDD0}'..='\u{FDEF}')
            .chain('\u{F0000}'..='\u{FFFFD}')
            .find(|&c| !texts().any(|text| text.contains(c)))
            .ok_or_else(|| Error::Request("the messages hold every private character of Unicode".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn user(content: &str) -> Vec<Message> {
        vec![Message::new(Role::User, content)]
    }

    #[test]
    fn marks_follow_the_text_and_leave_no_trace() {
        let template = ChatTemplate::new(CHATML, None, None).unwrap();
        let find = |content: &str| content.match_indices('<').map(|(at, _)| at..at + 1).collect::<Vec<_>>();
        // The noncharacter that would serve as the mark is taken.
        let content = "  a<b\u{FDD0}<  ";
        let (text, untrusted) = template.render_marked(&user(content), true, find).unwrap();
        assert_eq!(text, template.render(&user(content), true).unwrap());
        assert_eq!(text, "<|im_start|>user\na<b\u{FDD0}<<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(untrusted, [18..19, 23..24]);
        let (_, untrusted) = template.render_marked(&user("plain"), true, find).unwrap();
        assert!(untrusted.is_empty());
    }

    #[test]
    fn errors_say_what_the_template_said() {
        let template = ChatTemplate::new("{{ raise_exception('roles must ' ~ 'alternate') }}", None, None).unwrap();
        let error = template.render(&[], false).unwrap_err();
        assert!(matches!(&error, Error::Request(what) if what.contains("roles must alternate")), "{error}");
        let error = ChatTemplate::new("a\n{% for %}", None, None).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(what) if what.contains("line 2")), "{error}");
        let error = ChatTemplate::new("{{ messages | no_such_filter }}", None, None)
            .and_then(|template| template.render(&[], false))
            .unwrap_err();
        assert!(error.to_string().contains("no_such_filter"), "{error}");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let forever = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}x{% endfor %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(forever, None, None).unwrap();
        assert!(template.render(&[], false).unwrap_err().to_string().contains("fuel"));
        // A long message is no reason to stop.
        let template = ChatTemplate::new(CHATML, None, None).unwrap();
        let long = "word ".repeat(2_000_000);
        assert!(template.render(&user(&long), true).unwrap().len() > long.len());
    }
}
