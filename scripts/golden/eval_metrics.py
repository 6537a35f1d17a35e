#!/usr/bin/env python3
"""Makes crates/eval/tests/golden/metrics.json: answers, what they are compared with, and scores from independent code.

    pip install pyyaml tqdm rouge==1.0.1 rouge_score==0.1.2 fuzzywuzzy==0.18.0
    python scripts/golden/eval_metrics.py [--wheel nvidia_long_context_eval-26.3-py3-none-any.whl]

{"versions": {...}, "cases": [{"metric", "prediction", "answers", "all_classes" (classification), "score"}]}, scores from 0 to 1.

- RULER's metrics: the scorer of its package nvidia-long-context-eval, run on files as RULER runs it.
- LongBench's, by the definitions of its metrics.py (2024): rouge_l with the package rouge, code_sim with fuzzywuzzy, as LongBench has them.
  fuzzywuzzy uses python-Levenshtein where that is installed, which gives other ratios; LongBench does not ask for it, so it must not be.
- InfiniteBench's, by the definitions of its compute_scores.py (June 2024); rouge_l_sum with the package rouge_score.
"""
import argparse
import collections
import difflib
import importlib.metadata
import json
import pathlib
import platform
import re
import runpy
import string
import sys
import tempfile
import types

import rouge
from fuzzywuzzy import fuzz
from rouge_score import rouge_scorer

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "eval"))
import ruler

OUT = HERE.parents[2] / "crates/eval/tests/golden/metrics.json"
PACKAGES = ["rouge", "rouge_score", "fuzzywuzzy"]
CN_PUNCTUATION = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."


# --- RULER ------------------------------------------------------------------------------------------------------------------


def ruler_scores(package, cases):
    """Scores of (metric, prediction, answers) by RULER's evaluate.py, whose tables and downloads are not needed here."""
    nltk, pandas = types.ModuleType("nltk"), types.ModuleType("pandas")
    nltk.data = types.SimpleNamespace(find=lambda name: None)
    sys.modules.update(nltk=nltk, pandas=pandas)
    sys.path.insert(0, str(package))
    arguments, sys.argv = sys.argv, ["evaluate.py", "--data_dir=."]
    evaluate = runpy.run_path(str(package / "long_context_eval/eval/evaluate.py"), run_name="evaluate")
    sys.argv = arguments
    tasks = runpy.run_path(str(package / "long_context_eval/eval/synthetic/constants.py"))["TASKS"]
    scores = []
    for metric, prediction, answers in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            json.dump({"index": 0, "input": "", "outputs": answers, "pred": prediction, "others": {}}, file)
            file.flush()
            task = tasks["qa" if metric == "string_match_part" else "niah"]
            scores.append(evaluate["run_evaluation_per_task"](task, file.name)[4][0] / 100)
    return scores


# --- LongBench --------------------------------------------------------------------------------------------------------------


def f1(found, right):
    both = sum((collections.Counter(found) & collections.Counter(right)).values())
    # The harmonic mean of both / len(found) and both / len(right).
    return 2 * both / (len(found) + len(right)) if both else 0.0


def squad_words(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def share_of_numbers(prediction, number):
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def classification(prediction, answer, classes):
    named = [c for c in classes if c in prediction]
    # LongBench takes items out of the list it goes through, so the one after each of them is not looked at.
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if answer in named else 0.0


def code_sim(prediction, answer):
    lines = (line for line in prediction.lstrip("\n").split("\n") if not re.search("`|#|//", line))
    return fuzz.ratio(next(lines, ""), answer) / 100


def rouge_l(prediction, answer):
    try:
        return rouge.Rouge().get_scores(prediction, answer)[0]["rouge-l"]["f"]
    except ValueError:  # an empty text, for which LongBench gives 0
        return 0.0


# --- InfiniteBench ----------------------------------------------------------------------------------------------------------


def spaced(text, marks):
    for mark in marks:
        text = text.replace(mark, " ")
    return text


MARKS = list("\n:\"'.,?!{}")


def after_phrase(text, phrases):
    """What follows the first of the phrases that occurs, and one character; None without any."""
    text = re.sub(" +", " ", text)
    found = next((p for p in phrases if p in text), None)
    return None if found is None else text[text.index(found) + len(found) + 1 :]


def choice(prediction, answers):
    text = prediction.strip()
    if not text:
        return False
    if text[0] in "ABCD":
        return text[0] in answers
    if text in answers:
        return True
    text = spaced(text, [m for m in MARKS if m != ":"])
    rest = after_phrase(text, ["answer is:", "answer:", "answer is", "option is"])
    if rest is not None:
        return any(rest.startswith(answer) for answer in answers)
    return next((word in answers for word in text.split() if word in "ABCD"), False)


def code_debug(prediction, answers):
    name, letter = answers
    text = prediction.strip()
    if text.startswith((letter + ".", letter + ":")):
        return True
    rest = after_phrase(spaced(text, ["\n", "`", "'", '"', "-", "*", "Option", "option"]), ["answer is:", "is:", "answer:"])
    return rest is not None and rest.startswith((letter, name))


def code_run(prediction, answers):
    words = spaced(prediction.strip(), ["\n", ".", "`", "'", '"', ":"]).split()
    try:
        return int(words[-1]) == int(answers[0])
    except (IndexError, ValueError):
        return False


def math_find(prediction, answers):
    kind = float if "." in answers[0] else int
    found = re.search(r"\d+\.\d+|\d+", prediction)
    return found is not None and kind(found[0]) == kind(answers[0])


def math_calc(prediction, answers):
    found = [int(number) for number in re.findall("[0-9]+", prediction)]
    right = 0
    while right < min(len(found), len(answers)) and found[right] == int(answers[right]):
        right += 1
    return right / len(answers)


def first_number(prediction):
    found = re.search("[0-9]+", prediction)
    return found[0] if found else ""


def chinese(text):
    return [c for c in text.lower() if c not in string.punctuation + CN_PUNCTUATION and not c.isspace()]


LINES = rouge_scorer.RougeScorer(["rougeLsum"])
EACH = {
    "qa_f1": lambda p, a: f1(squad_words(p), squad_words(a)),
    "rouge_l": rouge_l,
    "retrieval": lambda p, a: share_of_numbers(p, re.search(r"Paragraph (\d+)", a)[1]),
    "retrieval_zh": lambda p, a: share_of_numbers(p, re.search(r"段落(\d+)", a)[1]),
    "count": share_of_numbers,
    "code_sim": code_sim,
    "first_number": lambda p, a: first_number(p) == a,
    "kv_retrieval": lambda p, a: a in spaced(p, MARKS).split(),
    "qa_f1_characters": lambda p, a: f1(chinese(p), chinese(a)),
    "rouge_l_sum": lambda p, a: LINES.score(a, p)["rougeLsum"].fmeasure,
}
WHOLE = {
    "longdialogue_qa_eng": lambda p, a: a[0] in [word.upper() for word in spaced(p, MARKS).split()],
    "longbook_choice_eng": choice,
    "code_debug": code_debug,
    "code_run": code_run,
    "math_find": math_find,
    "math_calc": math_calc,
}


# --- cases ------------------------------------------------------------------------------------------------------------------

# Metric: predictions and answers.
CASES = {
    "string_match_all": [
        ("The numbers are 1234567, 7654321.", ["1234567", "7654321", "1111111", "2222222"]),
        ("ABCDE, FGHIJ and KLMNO", ["abcde", "fghij", "klmno"]),
        ("abcde", ["ABCDE", "ABCDF"]),
        ("", ["1234567"]),
        (" \n\t ", ["1234567"]),
        ("12345678", ["1234567"]),
        ("123456", ["1234567"]),
        ("1,234,567", ["1234567"]),
        ("1234567" * 3, ["1234567", "1234567"]),
        ("1. apple 2. pear 3. plum", ["apple", "pear", "plum", "fig", "date", "lime", "kiwi", "melon", "grape", "peach"]),
        ("STRASSE", ["straße"]),
        ("straße", ["STRASSE"]),
        ("İstanbul", ["istanbul"]),
        ("ΟΔΥΣΣΕΥΣ", ["οδυσσευς"]),
        ("ΟΔΥΣΣΕΥΣ Α", ["οδυσσευσ"]),
        ("ﬁne Å", ["fine", "å"]),
        ("one\x00two\x1fthree", ["onetwo", "three"]),
        ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", ["3F2504E0-4F89-41D3-9A0C-0305E82C3301", "3f2504e0"]),
        ("x", ["", "x"]),
    ],
    "string_match_part": [
        ("It was in PARIS, I think", ["London", "Paris"]),
        ("Unanswerable.", ["London", "Paris"]),
        ("", ["x"]),
        ("no way", ["no"]),
        ("know nothing", ["NO"]),
        ("The 10th and 11th centuries", ["10th and 11th centuries", "in the 10th and 11th centuries"]),
        ("10th  and 11th", ["10th and 11th"]),
        ("Zürich", ["zurich", "ZÜRICH"]),
        ("Zu\u0308rich", ["Zürich"]),
        ("東京都", ["東京", "京都府"]),
        ("  yes\n\nNo other", ["yes\nno", "yes\n\nno"]),
    ],
    "qa_f1": [
        ("the blue car", ["a red bus", "blue car!"]),
        ("blue", ["the blue car"]),
        ("", ["something"]),
        ("something", [""]),
        ("", [""]),
        ("the", ["The"]),
        ("a an the", ["an"]),
        ("no no no yes", ["no yes yes"]),
        ("It's John's.", ["its johns"]),
        ("well-known", ["well known"]),
        ("U.S.A.", ["USA"]),
        ("U.S.A.", ["U S A"]),
        ("theatre anthem a1 1a", ["theatre anthem a1 1a"]),
        ("an_apple _a_ a_", ["anapple a"]),
        ("$1,000.50", ["100050"]),
        ("3.14", ["314 is"]),
        ("“quoted” — dash…", ["quoted dash"]),
        ("Zoë ZOË zoe", ["zoë"]),
        ("E\u0301COLE", ["école", "e\u0301cole"]),
        ("a\u0301 b", ["\u0301 b"]),
        ("a² b", ["² b"]),
        ("the\u200d b", ["\u200d b"]),
        ("aª the_ ٣a b", ["ª _ ٣ b"]),
        ("l'a été", ["la été"]),
        ("à la carte", ["la carte"]),
        ("naïve\u00a0a\u2003man\u200ba", ["naïve man\u200ba"]),
        ("a\x1cb\x1fc", ["b c"]),
        ("İ I ı", ["i̇ i ı"]),
        ("北京 是 首都", ["北京 首都"]),
        ("北京是首都", ["北京"]),
        ("the the the cat", ["cat cat the"]),
        ("line\nbreak\tand  spaces", ["line break and spaces"]),
        ("#hash @at 100%", ["hash at 100"]),
        ("AN APPLE A DAY", ["apple day"]),
        ("ΣΑΣ", ["σας", "σασ"]),
        ("1st of a 2nd", ["1st 2nd of of"]),
    ],
    "rouge_l": [
        ("same text", ["same text"]),
        ("the cat sat on the mat. a dog ran.", ["the cat lay on the mat. the dog ran away.", "a dog"]),
        ("a b c d. e f", ["a c b d. f e. x"]),
        ("", ["a"]),
        (". . .", ["a b"]),
        ("...", ["a b"]),
        ("a b", ["."]),
        ("The Cat", ["the cat"]),
        ("a. .b", ["a b.  "]),
        ("a a a a", ["a"]),
        ("b a b a c", ["a b c a b"]),
        ("It cost $1.5 million.\nThe House did not.", ["The House rejected it.\nIt would have cost 1.5 million."]),
        ("one two three four five six", ["six five four three two one"]),
        ("été — naïve “x”", ["été naïve x"]),
        ("北京 是 首都。", ["北京 是 中国 首都。"]),
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", ["w1 w2 w3 w4 w5"]),
        ("a\u00a0b a\u2003c", ["a b c"]),
    ],
    "rouge_l_sum": [
        ("same text", ["same text"]),
        ("the cat sat on the mat\na dog ran.", ["the cat lay on the mat\nthe dog ran away."]),
        ("", ["a"]),
        ("?!", ["a b"]),
        ("It's 3.5% — naïve?", ["its 3 5 na ve it s"]),
        ("Running runs RUN", ["run running"]),
        ("b a b a c", ["a b c a b"]),
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", ["w1 w2 w3 w4 w5"]),
        ("a\n\nb c", ["A b\nc"]),
        ("İstanbul K", ["i stanbul k"]),
    ],
    "retrieval": [
        ("Paragraph 12", ["Paragraph 12"]),
        ("12 or 13, or 12", ["Paragraph 12"]),
        ("Paragraph 120", ["Paragraph 12"]),
        ("Paragraph 012", ["Paragraph 12"]),
        ("Paragraph twelve", ["Paragraph 12"]),
        ("", ["Paragraph 1"]),
        ("1.2", ["Paragraph 1"]),
        ("-7", ["Paragraph 7 of 9"]),
        ("paragraph ٣", ["Paragraph ٣"]),
        ("3", ["Paragraph ٣"]),
        ("Paragraph 5\n\nParagraph 6", ["Paragraph 6", "Paragraph 5"]),
        ("5²", ["Paragraph 5"]),
    ],
    "qa_f1_characters": [
        ("北京 市。", ["北京"]),
        ("“北京”！", ["北京市", "北京"]),
        ("", ["北京"]),
        ("。", ["。"]),
        ("Abc 北", ["北 aBC"]),
        ("京京京北", ["北京"]),
        ("１２", ["12"]),
    ],
    "retrieval_zh": [
        ("段落12", ["段落12"]),
        ("是段落1，不是段落2", ["段落2"]),
        ("段落１２", ["段落12"]),
        ("十二", ["段落12"]),
    ],
    "count": [
        ("There are 7.", ["7"]),
        ("7 of 7, not 8", ["7"]),
        ("seventeen: 17", ["7"]),
        ("07", ["7"]),
        ("7.0", ["7"]),
        ("1,000", ["1000"]),
        ("none", ["0"]),
        ("", ["0"]),
        ("00", ["0"]),
    ],
    "code_sim": [
        ("# a comment\n    return self.x\n", ["    return self._x"]),
        ("```python\nx = 1\n```", ["x = 1"]),
        ("\n\nx = 1\ny = 2", ["x = 1"]),
        ("\n \nx = 1", ["x = 1"]),
        ("// c\n# p\n`m`", ["x"]),
        ("", ["x"]),
        ("x", [""]),
        ("", [""]),
        ("return a + b", ["return b + a"]),
        ("abcd", ["dcba"]),
        ("ab", ["abab"]),
        ("print('ü')", ["print('u')"]),
        ("x = 1 # why", ["x = 1"]),
        ("x = a // b\nx = a / b", ["x = a / b"]),
        ("foo(bar, baz)\r\nmore", ["foo(bar, baz)"]),
        ("int i = 0;", ["for (int i = 0; i < n; i++)", "int j = 0;"]),
        ("abc", ["abcde"]),
        ("x" * 150 + "needle" + "y" * 100, ["y" * 120 + "needle" + "x" * 120]),
        ("result = compute(alpha, beta, gamma)" * 7, ["result = compute(gamma, beta, alpha)" * 7]),
        ("public static void main(String[] args) {", ["public static int main(String... args) {", "private static void run() {"]),
    ],
    "first_number": [
        (" 71432. The", ["71432"]),
        ("The pass key is 71432", ["71432"]),
        ("1 71432", ["71432"]),
        ("071432", ["71432"]),
        ("-71432", ["71432"]),
        ("none", ["71432"]),
        ("٧1", ["1"]),
        ("71,432", ["71432"]),
    ],
    "kv_retrieval": [
        ('"3f2504e0-4f89"', ["3f2504e0-4f89"]),
        ('{"key": "3f2504e0-4f89"}', ["3f2504e0-4f89"]),
        ("3f2504e0-4f89-41d3", ["3f2504e0-4f89"]),
        ("3F2504E0-4F89", ["3f2504e0-4f89"]),
        ("3f2504e0-4f89;", ["3f2504e0-4f89"]),
        ("", ["3f2504e0-4f89"]),
    ],
    "longdialogue_qa_eng": [
        ("Harry", ["HARRY", "POTTER"]),
        ("It is Potter.", ["HARRY", "POTTER"]),
        ("harry's", ["HARRY"]),
        ("Harry-Potter", ["HARRY"]),
        ("straße", ["STRASSE"]),
        ("", ["HARRY"]),
        ("MARY ANN", ["MARY ANN"]),
    ],
    "longbook_choice_eng": [
        ("B", ["The garden", "B"]),
        (" B. The house", ["The garden", "B"]),
        ("A or B", ["The garden", "B"]),
        ("Because of B", ["The garden", "B"]),
        ("The garden", ["The garden", "B"]),
        ("the garden", ["The garden", "B"]),
        ("It says: the answer is: B", ["The garden", "B"]),
        ("the answer is: C or B", ["The garden", "B"]),
        ("the answer is:", ["The garden", "B"]),
        ("the answer is B", ["The garden", "B"]),
        ("the answer is  The garden.", ["The garden", "B"]),
        ("my option is (B)", ["The garden", "B"]),
        ("the answer:B", ["The garden", "B"]),
        ("surely CD, not B", ["The garden", "B"]),
        ("it is \"B\".", ["The garden", "B"]),
        ("none of these", ["The garden", "B"]),
        ("", ["The garden", "B"]),
    ],
    "code_debug": [
        ("C.", ["parse_line", "C"]),
        ("  C: parse_line", ["parse_line", "C"]),
        ("C", ["parse_line", "C"]),
        ("C)", ["parse_line", "C"]),
        ("The correct option is: C", ["parse_line", "C"]),
        ("The answer is: `parse_line`", ["parse_line", "C"]),
        ("The answer is: **parse_line**", ["parse_line", "C"]),
        ("this is: D. answer: C", ["parse_line", "C"]),
        ("answer:", ["parse_line", "C"]),
        ("answer: Cat", ["parse_line", "C"]),
        ("answer:\nOption C", ["parse_line", "C"]),
        ("parse_line", ["parse_line", "C"]),
        ("", ["parse_line", "C"]),
    ],
    "code_run": [
        ("The value is -7.", ["-7"]),
        ("7 or so", ["7"]),
        ("+7", ["7"]),
        ("007", ["7"]),
        ("`12`", ["12"]),
        ("12:", ["12"]),
        ("1.5", ["5"]),
        ("1,000", ["1000"]),
        ("1_000", ["1000"]),
        ("--7", ["7"]),
        ("", ["7"]),
        ("12345678901234567890", ["12345678901234567890"]),
    ],
    "math_find": [
        ("It is 07, then 8", ["7"]),
        ("7", ["7.0"]),
        ("about 7.50", ["7.5"]),
        ("7.", ["7"]),
        (".5", ["0.5"]),
        ("-7", ["7"]),
        ("none", ["7"]),
        ("", ["7"]),
    ],
    "math_calc": [
        ("[1, 4, 9]", ["1", "4", "8", "2"]),
        ("1, 4, 8, 2, 5", ["1", "4", "8", "2"]),
        ("0 1 4", ["1", "4"]),
        ("[1, -4]", ["1", "4"]),
        ("[1, 4]", ["1", "-4"]),
        ("1.4", ["1", "4"]),
        ("", ["1"]),
        ("01 4x8", ["1", "4", "8"]),
    ],
}  # fmt: skip

CLASSES = ["city", "city name", "state", "country", "Human individual", "Human", "a", "ab", "abc", "Entfernung, Maß"]
# Prediction, answer.
CLASSIFIED = [
    ("city", "city"), ("city", "state"), ("Type: city name", "city name"), ("city name or state", "city name"), ("city name", "city"),
    ("state, country", "country"), ("City", "city"), ("", "city"), ("Human individual", "Human individual"), ("Human individual", "Human"),
    ("abc", "abc"), ("abc", "ab"), ("Entfernung, Maß", "Entfernung, Maß"), ("entfernung, mass", "Entfernung, Maß"), ("none", "abc"),
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=pathlib.Path, help=f"the wheel of {ruler.PACKAGE}; default: pip downloads it")
    args = parser.parse_args()
    if fuzz.SequenceMatcher is not difflib.SequenceMatcher:
        sys.exit("error: fuzzywuzzy computes other ratios with python-Levenshtein; run: pip uninstall python-Levenshtein Levenshtein")
    cases = []
    for metric, rows in CASES.items():
        official = metric.startswith("string_match")
        if official:
            scores = ruler_scores(ruler.unpacked(args.wheel), [(metric, *row) for row in rows])
        for number, (prediction, answers) in enumerate(rows):
            if official:
                score = scores[number]
            elif metric in WHOLE:
                score = WHOLE[metric](prediction, answers)
            else:
                score = max(EACH[metric](prediction, answer) for answer in answers)
            cases.append({"metric": metric, "prediction": prediction, "answers": answers, "score": float(score)})
    for prediction, answer in CLASSIFIED:
        score = float(classification(prediction, answer, CLASSES))
        cases.append({"metric": "classification", "prediction": prediction, "answers": [answer], "all_classes": CLASSES, "score": score})
    versions = {"python": platform.python_version(), "nvidia-long-context-eval": ruler.PACKAGE.split("==")[1]}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with open(OUT, "w") as file:
        rows = ",\n".join(json.dumps(case) for case in cases)
        file.write(f'{{"versions": {json.dumps(versions)},\n"cases": [\n{rows}\n]}}\n')
    print(OUT, OUT.stat().st_size, "bytes", len(cases), "cases", versions)


if __name__ == "__main__":
    main()
