"""Makes crates/engine/tests/golden/tokenizer/: token ids by llama.cpp, Hugging Face tokenizers and SentencePiece.

    pip install gguf==0.19.0 llama-cpp-python==0.3.36 sentencepiece==0.2.3 tokenizers==0.23.3 transformers==5.23.0
    python scripts/golden/tokenizer.py FOLDER     # holds smollm2.gguf and qwen2.5-coder-0.5b.gguf

Files:
- corpus.json: the texts, written for this purpose (see CASES).
- tiny.json: two small vocabularies trained on the corpus, one byte-level, one of SentencePiece. Their tokens reach across words
  wherever training finds a repetition, so ids show every difference in where a text is cut.
- pre.json: the byte-level vocabulary under every `tokenizer.ggml.pre`.
- sentencepiece.json: SentencePiece's vocabulary, as GGUF metadata.
- json.json: both vocabularies under many forms of tokenizer.json.
- smollm2.json, qwen2.5-coder-0.5b.json: the real vocabularies, and chats.

Where llama.cpp only approximates the published pattern of a tokenizer, or leaves out its normalisation (NFC), the Hugging Face
tokenizer with the published pattern is the reference; the script prints how many texts are concerned, and asserts that the rest
agree.
"""
import hashlib
import io
import json
import pathlib
import sys
import tempfile
import unicodedata

import gguf
import llama_cpp
import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35

OUT = pathlib.Path(__file__).parents[2] / "crates/engine/tests/golden/tokenizer"

CASES = [
    "",
    " ",
    "  ",
    "   \t \t\t  ",
    "\n",
    "\n\n\n",
    "\r\n",
    "a\r\nb\r\n\r\nc\rd",
    " \n \n\n  \n",
    "Hello, world!",
    " Hello,  world !",
    "The quick brown fox jumps over the lazy dog. The dog does not mind; the fox does it again, and again, and again.",
    "trailing spaces   ",
    "   leading spaces",
    "tabs\there\t\tand\t there",
    "line one\nline two\n\nline four\n\n\n  indented\n\tand tabbed\n",
    "a" * 70 + " " * 33 + "b" + "\n" * 17 + " " * 4 + "\n" + " " * 130 + "end",
    "it's we're they've I'll you'd he'd can't won't o'clock 'tis rock'n'roll the dogs' ball",
    "IT'S WE'RE THEY'VE I'LL YOU'D Can'T it\u2019s don\u2019t 'S 'Re 'vE",
    "'s'll'x''s '' ' '",
    "\u017fis 'ſ K 'ﬁ",
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "1,234,567.89 -3.14e-10 0x1F 1st 2nd 3rd v2.0.1 192.168.0.1 2024-02-29T23:59:60Z ½ ² Ⅷ ٣٤٥ 一二三 ０１２",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ !!! ??? ... --- === ___ ***",
    "...\n...\r\n\r\n!\n ?\n\n;  :\n",
    "CamelCase snake_case SCREAMING_CASE kebab-case mixedCASEWord HTTPServer iPhone eBay McDonald ǅungla",
    "naïve café résumé Ångström señor façade Zoë œuvre straße ĳsvrij",
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m sen\u0303or \u1e9b\u0323 q\u0307\u0323",
    "a\u0300\u0301\u0302\u0303\u0304 Z\u0351\u036b\u0343a\u0329l\u0348g\u0330o\u0353 e\u0301\u0323",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка! ІЇЄҐ",
    "Ο καιρός είναι καλός σήμερα. ΑΒΓ αβγ ς ΐ ΰ",
    "שלום עולם! זֶה נִקּוּד. \u202bימין לשמאל\u202c abc",
    "مرحبا بالعالم، كيف الحال؟ السَّلَامُ عَلَيْكُم ١٢٣",
    "नमस्ते दुनिया। क्षत्रिय कि की कु हिन्दी १२३",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง น้ำ กำ",
    "வணக்கம் உலகம் தமிழ் கொடுத்து",
    "მზე ანათებს. Ⴀႁ Ա Բ աբ Բարեւ",
    "你好，世界！今天天气很好。我们去公园吧？「引号」『书名号』……——",
    "漢字とひらがなとカタカナ、ｶﾀｶﾅも。東京タワーは３３３メートル。々〆ヶ",
    "안녕하세요 세계! 한국어 \u1112\u1161\u11ab\u1100\u1173\u11af 조합",
    "𝒳𝓎𝓏 𝟘𝟙𝟚 𐍈𐍂 𓀀𓁐 𠜎𠜱𡇙 🜁",
    "😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ☺️ ☺ ❤️‍🔥 1️⃣ #️⃣ 🤷🏻‍♀️",
    "zero\u200bwidth \u200c\u200d join\u2060er soft\u00adhyphen \ufeffbom nb\u00a0sp thin\u2009sp em\u2003sp ideo\u3000sp line\u2028sep para\u2029sep nel\u0085x",
    "\u00a0\u00a0x\u2003\u2003y\u3000\u3000z \u3000 w",
    "nul\0byte bell\x07 esc\x1b[0m del\x7f vt\x0b ff\x0c fs\x1c us\x1f eot\x04",
    "broken \ufffd\ufffd utf \ufffd8 \ufffe \U0010ffff \ue000",
    "fn main() {\n    let x: Vec<u8> = vec![0; 1 << 20];\n    println!(\"{:?} {}\", &x[..3], 'a');\n}\n",
    "def f(x, *args, **kw):\n\t\"\"\"Doc.\"\"\"\n\treturn {k: v for k, v in kw.items() if v is not None}  # comment\n",
    "#include <stdio.h>\nint main(void) { for (int i = 0; i < 10; ++i) printf(\"%d\\n\", i); return 0; }\n",
    "const f = async (a) => { await g`x${a}`; return a?.b ?? c; };\n// done\n/* block */\n",
    "<!DOCTYPE html>\n<p class=\"a b\">T&amp;C &lt;3 &nbsp;</p>\n<!-- note -->\n",
    "SELECT a.\"b\", COUNT(*) FROM t AS a WHERE x <> 'it''s' AND y >= 1e3;\n",
    "{\"k\": [1, 2.5, null, true], \"nested\": {\"a\\nb\": \"\\u00e9\"}}",
    "\\begin{align} \\frac{a}{b} &= \\sum_{i=1}^{n} x_i^2 \\\\ \\end{align}",
    "# Title\n\n* item\n  * nested\n\n1. one\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```sh\nls -la | grep x\n```\n",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org /usr/local/bin C:\\dir\\file.txt ~/x",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|im_end|>more <|im_start|><|im_start|> <|im_end|>\n\n<|endoftext|>",
    "<|im_start|<|im_start|>|> <|im_end|x <| im_end |> <|IM_END|>",
    "<s>one</s><s> two</s>\n<unk> <pad> [INST] x [/INST] <0x0A> <0xE4><0xB8>",
    "<tool_call>{}</tool_call> <|fim_prefix|>a<|fim_suffix|>b<|fim_middle|> <repo_name>r<file_sep>f <tool>x<tool> y",
    "▁under▁score▁ ▁▁ _ __ Ġ Ċ ĠĠ âĢĻ",
    "Ünïcödé ÀÁÂ õ ÷ ø þ ÿ ù ú û ü ý À Á",
    "word\u0301s \u0301 \u0301\u0301 1\u0301 .\u0301 \n\u0301",
    "xx" * 50 + "xyz" * 20 + "ab" * 41 + "1" * 37,
]
# Texts that show where cuts fall; the others are for vocabularies.
CUT_CASES = [i for i, text in enumerate(CASES) if len(text) < 150]


def lcg_text(cases, pieces):
    """A long text from short ones; the test makes the same."""
    state, out = 12345, []
    for _ in range(pieces):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(cases[(state >> 33) % len(cases)])
        out.append(["", " ", "\n", "\n\n"][(state >> 20) % 4])
    return "".join(out)


def digest(ids):
    """Of ids as 32-bit little-endian numbers."""
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()


def write(name, data):
    # One line for each entry, so that differences can be read.
    def rows(value, depth):
        if isinstance(value, dict) and depth:
            inner = ",\n".join(f"{json.dumps(k, ensure_ascii=False)}: {rows(v, depth - 1)}" for k, v in value.items())
            return "{\n" + inner + "\n}"
        if isinstance(value, list) and value and depth and not isinstance(value[0], (int, float)):
            return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in value) + "\n]"
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    (OUT / name).write_text(rows(data, 2) + "\n")


class LlamaCpp:
    """llama.cpp's tokenizer for a GGUF file, or for metadata of a vocabulary."""

    def __init__(self, path=None, **fields):
        self.scratch = tempfile.TemporaryDirectory()
        if path is None:
            path = pathlib.Path(self.scratch.name) / "vocab.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
                getattr(writer, f"add_{key}")(64)
            writer.add_head_count(1)
            writer.add_rope_dimension_count(64)
            writer.add_layer_norm_rms_eps(1e-5)
            for key, value in fields.items():
                getattr(writer, f"add_{key}")(value)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
        self.model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def __call__(self, text, special):
        return self.model.tokenize(text.encode(), add_bos=False, special=special)


# --- small vocabularies ---------------------------------------------------------------------------------------------------

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
USER = ["<tool>", "<tool_call>"]


def train_byte_level():
    """Tokens may hold anything that repeats, across words too."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CASES * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(USER)
    return {"tokens": tokens + CONTROL + USER, "kinds": kinds, "merges": [" ".join(m) for m in model["merges"]]}


def train_sentencepiece():
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CASES * 2 for line in text.split("\n") if line.strip() and "\0" not in line]),
        model_writer=buffer, model_type="bpe", vocab_size=1150, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        user_defined_symbols=USER, control_symbols=["<|im_start|>", "<|im_end|>", "<|endoftext|>"], minloglevel=2,
        max_sentencepiece_length=8, split_digits=True, num_threads=1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    size = processor.vocab_size()

    def kind(i):
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        if processor.is_byte(i):
            return 6
        return 4 if processor.id_to_piece(i) in USER else 1

    vocab = {
        "tokens": [processor.id_to_piece(i) for i in range(size)],
        "scores": [processor.get_score(i) for i in range(size)],
        "kinds": [kind(i) for i in range(size)],
    }
    return vocab, processor


# --- tokenizer.ggml.pre ---------------------------------------------------------------------------------------------------

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
# Name: the published patterns (None: GPT-2's own, after single digits if True), NFC, whole words first. A name that is
# missing here is known from llama.cpp alone.
PUBLISHED = {
    "llama-bpe": ([LLAMA3], False, True),
    "chatglm-bpe": ([LLAMA3], False, False),
    "qwen2": ([QWEN2], True, False),
    "qwen35": ([QWEN35], True, False),
    "gpt-2": (False, False, False),
    "smollm": (True, False, False),
    "command-r": (True, True, False),
    "gpt-4o": ([GPT4O], False, False),
    "tekken": ([TEKKEN], False, True),
    "deepseek-v3": (DEEPSEEK3, False, False),
}
ALL_PRE = [*PUBLISHED, "stablelm2", "deepseek-llm", "deepseek-coder", "default"]


def published_tokenizer(vocab, pre):
    patterns, nfc, whole = PUBLISHED[pre]
    ids = {t: i for i, (t, k) in enumerate(zip(vocab["tokens"], vocab["kinds"])) if k == 1}
    merges = [tuple(m.split(" ")) for m in vocab["merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=isinstance(patterns, bool))
    before = [pre_tokenizers.Digits(True)] if patterns is True else []
    if not isinstance(patterns, bool):
        before = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    add_added(tokenizer, vocab)
    return tokenizer


def add_added(tokenizer, vocab):
    """In the order of ids: where the model does not hold them, they get the next ones."""
    for token, kind in zip(vocab["tokens"], vocab["kinds"]):
        if kind in (2, 3):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == 4:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    assert all(tokenizer.token_to_id(t) == i for i, t in enumerate(vocab["tokens"]))


def hf(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def make_pre(vocab):
    result = {}
    for pre in ALL_PRE:
        reference = LlamaCpp(
            tokenizer_model="gpt2", tokenizer_pre=pre, token_list=vocab["tokens"], token_types=vocab["kinds"],
            token_merges=vocab["merges"], bos_token_id=vocab["tokens"].index("<s>"), eos_token_id=vocab["tokens"].index("<|endoftext|>"),
        )  # fmt: skip
        published = published_tokenizer(vocab, pre) if pre in PUBLISHED else None
        rows, differ = [], []
        for i in CUT_CASES:
            ids = reference(CASES[i], False)
            if published:
                own = hf(published, CASES[i], False)
                if own != ids:
                    differ.append(i)
                ids = own
            rows.append([i, ids])
        print(f"{pre}: {len(rows)} texts, llama.cpp differs from the published pattern on {differ}")
        result[pre] = rows
    write("pre.json", result)


# --- SentencePiece --------------------------------------------------------------------------------------------------------


def make_sentencepiece(vocab, processor):
    result = {}
    for add_space in (True, False):
        reference = LlamaCpp(
            tokenizer_model="llama", tokenizer_pre="default", token_list=vocab["tokens"], token_scores=vocab["scores"],
            token_types=vocab["kinds"], add_space_prefix=add_space, bos_token_id=vocab["tokens"].index("<s>"),
            eos_token_id=vocab["tokens"].index("</s>"), unk_token_id=0,
        )  # fmt: skip
        for special in (True, False):
            rows = []
            for i, text in enumerate(CASES):
                ids = reference(text, special)
                # SentencePiece itself, where the two mean the same: it never adds a space after a user-defined token.
                if add_space and not special and not any(u in text for u in USER):
                    own = processor.encode(text)
                    if own != ids:
                        # llama.cpp merges the texts of control and byte tokens from their characters; SentencePiece never does.
                        print(f"sentencepiece: text {i} differs from llama.cpp: {text!r}")
                        ids = own
                rows.append([i, ids])
            result[f"add_space_prefix={add_space} special={special}".lower()] = rows
    write("sentencepiece.json", result)


# --- tokenizer.json -------------------------------------------------------------------------------------------------------


def make_json(byte_level, spm):
    """Forms of tokenizer.json. The test puts vocabularies and parts together."""
    result = {}
    space, byte = "▁", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spm_ids = {t: i for i, t in enumerate(spm["tokens"])}
    rank = {t: spm["scores"][i] for t, i in spm_ids.items()}
    # Every way to make a token from two, best scores first: how converters write SentencePiece's merges.
    merges = [
        (t[:cut], t[cut:]) for t in spm_ids if spm["kinds"][spm_ids[t]] == 1 for cut in range(1, len(t)) if t[:cut] in spm_ids and t[cut:] in spm_ids
    ]  # fmt: skip
    merges.sort(key=lambda m: -rank[m[0] + m[1]])
    spm_decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    forms = {
        "spaces, prepend": (spm, dict(normalizer=normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)]))),
        "spaces, no prepend": (spm, dict(normalizer=normalizers.Replace(" ", space))),
        "metaspace first": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "first", False))),
        "metaspace always": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "always", False))),
        "metaspace always, split": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "always", True))),
        "metaspace never, split": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "never", True))),
        "no fallback": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "first", False), byte_fallback=False, unk_token="<unk>", fuse_unk=True)),
        "no fallback, one by one": (spm, dict(pre_tokenizer=pre_tokenizers.Metaspace(space, "first", False), byte_fallback=False, unk_token="<unk>")),
        "bytes": (byte_level, dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))),
        "bytes, nfc, digits": (byte_level, dict(
            normalizer=normalizers.Sequence([normalizers.NFC()]),
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=False)]))),
        "bytes, only matches": (byte_level, dict(
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{L}+| +"), "removed", True), byte]))),
        "bytes, a string": (byte_level, dict(
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(".", "isolated"), pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte]), ignore_merges=True)),
        "bytes, possessive": (byte_level, dict(
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), "isolated"), byte]))),
        "stripping tokens": (byte_level, dict(pre_tokenizer=byte, strip=True)),
    }  # fmt: skip
    for name, (vocab, parts) in forms.items():
        parts = dict(parts)
        strip = parts.pop("strip", False)
        is_spm = vocab is spm
        options = {k: parts.pop(k) for k in ("byte_fallback", "unk_token", "fuse_unk", "ignore_merges") if k in parts}
        if is_spm:
            options.setdefault("byte_fallback", True)
            ids, pairs = spm_ids, merges
        else:
            ids = {t: i for i, (t, k) in enumerate(zip(vocab["tokens"], vocab["kinds"])) if k == 1}
            pairs = [tuple(m.split(" ")) for m in vocab["merges"]]
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs, **options))
        for part, value in parts.items():
            setattr(tokenizer, part, value)
        tokenizer.decoder = spm_decoder if is_spm else decoders.ByteLevel()
        add_added(tokenizer, vocab)
        if strip:
            tokenizer.add_special_tokens([
                AddedToken("<left>", special=True, normalized=False, lstrip=True),
                AddedToken("<right>", special=True, normalized=False, rstrip=True),
            ])  # fmt: skip
            tokenizer.add_tokens([AddedToken("word", normalized=False, single_word=True)])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["tokens"].index("<s>"))])
        file = json.loads(tokenizer.to_str())
        model = file.pop("model")
        file["model"] = {k: v for k, v in model.items() if k not in ("vocab", "merges")}
        texts = [" <left> a <right> \n b<left>", "word sword word_ (word)word word"] if strip else []
        rows = [[t, [hf(tokenizer, t, True), hf(tokenizer, t, False)]] for t in texts]
        rows += [[i, [hf(tokenizer, CASES[i], True), hf(tokenizer, CASES[i], False)]] for i in CUT_CASES[:: 3 if strip else 2]]
        for row in rows:
            if row[1][0] == row[1][1]:
                row[1].pop()
            # Decoded by the library, control tokens shown.
            row.append(tokenizer.decode(row[1][0], skip_special_tokens=False))
            text = row[0] if isinstance(row[0], str) else CASES[row[0]]
            if row[2] == text:
                row.pop()
        result[name] = {"vocab": "spm" if is_spm else "byte_level", "file": file, "rows": rows}
    result["spm merges"] = [" ".join(m) for m in merges]
    write("json.json", result)


# --- real models ----------------------------------------------------------------------------------------------------------


def make_real(path):
    reference = LlamaCpp(path)
    pre = {"smollm2": "smollm", "qwen2.5-coder-0.5b": "qwen2"}[path.stem]
    fields = gguf.GGUFReader(path).fields
    vocab = {k: fields[f"tokenizer.ggml.{f}"].contents() for k, f in (("tokens", "tokens"), ("kinds", "token_type"), ("merges", "merges"))}
    nfc = (lambda t: unicodedata.normalize("NFC", t)) if PUBLISHED[pre][1] else (lambda t: t)
    published = published_real(vocab, pre)
    rows = []
    for i, text in enumerate(CASES):
        both = []
        for special in (True, False):
            ids, own = reference(nfc(text), special), hf(published, text, special)
            if ids != own:
                print(f"{path.stem}: text {i} special={special}: llama.cpp differs from the published pattern")
            both.append(own)
        rows.append([i, both[:1] if both[0] == both[1] else both])
    # Long enough for several threads. Texts on which the references differ are left out.
    agree = [t for t in CASES if all(reference(nfc(t), s) == hf(published, t, s) for s in (True, False))]
    chosen = [CASES.index(t) for t in agree]
    long = lcg_text(agree, 12000)
    ids = hf(published, long, False)
    print(f"{path.stem}: long text of {len(long.encode())} bytes, {len(ids)} ids, equal in llama.cpp: {ids == reference(nfc(long), False)}")
    long_row = {"cases": chosen, "pieces": 12000, "count": len(ids), "sha256": digest(ids)}
    write(f"{path.stem}.json", {"rows": rows, "long": long_row, "chat": chats(fields, reference, published)})


def published_real(vocab, pre):
    special = {t: i for i, (t, k) in enumerate(zip(vocab["tokens"], vocab["kinds"])) if k not in (1,)}
    patterns, nfc, whole = PUBLISHED[pre]
    ids = {t: i for i, t in enumerate(vocab["tokens"])}
    normal = {"tokens": vocab["tokens"], "kinds": [1] * len(ids), "merges": vocab["merges"]}
    tokenizer = published_tokenizer(normal, pre)
    for token in special:
        kind = vocab["kinds"][ids[token]]
        if kind in (2, 3):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == 4:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?\n")],
    [("user", "  spaces around  "), ("assistant", ""), ("user", "\n\nnew\n\nlines\n\n")],
    [("user", "".join(CASES[i] for i in (9, 17, 27, 31, 37, 41, 46)))],
]


def chats(fields, reference, published):
    template = fields["tokenizer.chat_template"].contents()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    special = {n: tokens[fields[f"tokenizer.ggml.{n}_token_id"].contents()] for n in ("bos", "eos")}
    rows = []
    for turns in CONVERSATIONS:
        for generate in (True, False):
            messages = [{"role": role, "content": content} for role, content in turns]
            text = render(template, messages, generate, **special)
            ids = hf(published, text, True)
            assert ids == reference(unicodedata.normalize("NFC", text) if published.normalizer else text, True)
            rows.append({"messages": messages, "generate": generate, "text": text, "ids": ids})
    return rows


def render(template, messages, generate, bos, eos):
    [text], _ = transformers.utils.chat_template_utils.render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=generate, bos_token=bos, eos_token=eos
    )
    return text


# Templates that use what real ones use, written for this purpose.
TEMPLATES = {
    "alternation": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
    {% set turns = messages[1:] %}
{% else %}
    {% set system = '' %}{% set turns = messages %}
{% endif %}
{% for m in turns %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('turns must alternate') }}
    {% endif %}
    {% if m.role == 'user' %}
        {{ '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
    {% else %}
        {{ ' ' ~ m.content ~ ' ' ~ eos_token }}
    {% endif %}
{% endfor %}
""",
    "namespace": """{%- set ns = namespace(last=-1, seen=false) -%}
{%- for m in messages %}{% if m.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- if not tools is defined or tools is none %}{% set n = 0 %}{% else %}{% set n = tools | length %}{% endif -%}
tools={{ n }};last={{ ns.last }}
{%- macro turn(m, i) -%}
<|{{ m.role | upper }}|>{{ m['content'] | tojson }}
{%- endmacro %}
{%- for m in messages recursive %}
{{ turn(m, loop.index) }}
{%- if loop.index0 == ns.last and add_generation_prompt %}{% break %}{% endif %}
{%- endfor %}
{%- generation %}{{ messages[-1].content.split('\\n')[0][:5] }}{% endgeneration %}
""",
    "strings": """{% for m in messages if m.role != 'system' %}
{% set c = m.content.lstrip('\\n').replace('  ', '_') %}
{%- if 'x' in c or c.startswith(' ') or c.endswith('?') %}[{{ c | length }}]{% else -%}
({{ c.upper() | trim }}){% endif %}

{%- if not loop.last %}{{ "," }}{% endif %}
{% endfor %}
{{- {'a': [1, 2.5, none, true], 'é': 'ü"'} | tojson(indent=2) }}
{% for k, v in {'q': 1, 'p': 2}.items() %}{{ k }}={{ v }};{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}
{{ messages | map(attribute='role') | unique | join('/') }}
{{ undefined_thing }}{{ (messages | last).content is string }}{{ 7 // 2 }}{{ '%s' is mapping }}
""",
}


def make_templates():
    result = {}
    for name, template in TEMPLATES.items():
        rows = []
        for turns in CONVERSATIONS:
            for generate in (True, False):
                messages = [{"role": role, "content": content} for role, content in turns]
                text = render(template, messages, generate, "<s>", "</s>")
                rows.append({"messages": messages, "generate": generate, "text": text})
        result[name] = {"template": template, "rows": rows}
    write("templates.json", result)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(sys.argv[1])
    write("corpus.json", {"texts": CASES})
    byte_level = train_byte_level()
    spm, processor = train_sentencepiece()
    write("tiny.json", {"byte_level": byte_level, "spm": spm})
    make_pre(byte_level)
    make_sentencepiece(spm, processor)
    make_json(byte_level, spm)
    make_templates()
    for name in ("smollm2", "qwen2.5-coder-0.5b"):
        make_real(folder / f"{name}.gguf")


main()
