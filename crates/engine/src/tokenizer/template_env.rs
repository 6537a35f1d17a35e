//! The Jinja dialect of Hugging Face's chat templates, on minijinja.
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// An environment for a conversation with this many bytes of content. Rendering stops after a number of steps that is ample
/// for any real template and grows with the content.
pub(super) fn environment(content_len: usize) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    if let Ok(syntax) = syntax {
        env.set_syntax(syntax);
    }
    env.set_fuel(Some(10_000_000 + content_len as u64));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| {
        jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
    });
    env.add_filter("tojson", to_json);
    env
}

/// What went wrong, with the line of the template.
pub(super) fn explain(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Hugging Face marks the text of the model with `{% generation %}` ... `{% endgeneration %}`, for training. They render
/// nothing; here they become a condition that always holds.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let inner = &tag[..end];
        match inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&inner.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inner.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(inner),
        }
        rest = &tag[end..];
    }
    out + rest
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent.map(|step| (step, 0)), &mut out)?;
    Ok(Value::from_safe_string(out))
}

/// `layout` is the indentation step and the depth.
fn write_json(value: &Value, layout: Option<(usize, usize)>, out: &mut String) -> Result<(), Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let deeper = layout.map(|(step, depth)| (step, depth + 1));
    let new_line = |layout: Option<(usize, usize)>, out: &mut String| {
        if let Some((step, depth)) = layout {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', step * depth));
        }
    };
    let separator = if layout.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool | ValueKind::Number => out.push_str(&value.to_string().to_lowercase()),
        ValueKind::String => out.push_str(&serde_json::to_string(value.as_str().unwrap_or_default()).map_err(failed)?),
        ValueKind::Map => {
            let mut empty = true;
            out.push('{');
            for key in value.try_iter()? {
                out.push_str(if empty { "" } else { separator });
                empty = false;
                new_line(deeper, out);
                out.push_str(&serde_json::to_string(&key.to_string()).map_err(failed)?);
                out.push_str(": ");
                write_json(&value.get_item(&key)?, deeper, out)?;
            }
            if !empty {
                new_line(layout, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push('[');
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { separator });
                empty = false;
                new_line(deeper, out);
                write_json(&item, deeper, out)?;
            }
            if !empty {
                new_line(layout, out);
            }
            out.push(']');
        }
        kind => return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a {kind} has no JSON"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        environment(0).render_str(&without_generation_tags(source), ()).unwrap()
    }

    #[test]
    fn json_is_written_as_python_does() {
        // Expected texts are from Python 3.11's json.dumps(..., ensure_ascii=False).
        let value = r#"{"a": [1, 2.5, true, none, "<é'\n>"], "b": {}, "c": []}"#;
        assert_eq!(
            render(&format!("{{{{ {value} | tojson }}}}")),
            r#"{"a": [1, 2.5, true, null, "<é'\n>"], "b": {}, "c": []}"#
        );
        assert_eq!(
            render(r#"{{ {"a": [1], "b": {}} | tojson(indent=2) }}"#),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
    }

    #[test]
    fn generation_tags_render_what_they_hold() {
        let source = "a\n  {%- generation -%}\n b {% endgeneration %}\nc {% set generation = 1 %}{{ generation }}";
        assert_eq!(render(source), "ab c 1");
        assert_eq!(without_generation_tags("{% x"), "{% x");
    }

    #[test]
    fn the_dialect_has_what_templates_use() {
        // Blocks on lines of their own leave nothing behind.
        assert_eq!(render("a\n    {% if true %}\nb\n    {% endif %}\nc"), "a\nb\nc");
        assert_eq!(
            render(
                "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
            ),
            "02"
        );
        assert_eq!(
            render("{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}"),
            "4"
        );
        assert_eq!(render("{{ ' a</t>b '.strip().split('</t>')[-1].upper() }}{{ 'x'.startswith('x') }}"), "BTrue");
        let year: i16 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!(year > 2024);
    }
}
