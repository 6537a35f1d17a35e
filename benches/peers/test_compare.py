"""compare.py against stand-ins for speedread and for the other libraries."""
import json
import pathlib
import stat
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent

SPEEDREAD = """#!{python}
import json, sys
args = sys.argv
n = int(args[args.index("--lengths") + 1])
assert args[1:3] == ["bench", "attention"] and args[args.index("--heads") + 1] == "4/2/64", args
patterns = [args[i + 1] for i, arg in enumerate(args) if arg == "--attention"]
row = lambda p: {{"attention": p, "milliseconds": n / 1000 if p == "dense" else 0.5, "index_milliseconds": 0.125, "density": 0.1}}
print(json.dumps({{"rows": [row(p) for p in patterns]}}))
"""

LIBRARIES = """
import json, sys
print(json.dumps({"libraries": ["Fast", "Odd"], "missing": {"Gone": "no such module"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    wrong = request["library"] == "Odd"
    ms = [request["n"] / 500] * request["runs"]
    print(json.dumps({"error": "head dim 64 is not supported"} if wrong else {"ms": ms}), flush=True)
"""


class Compare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        self.speedread, self.libraries, self.json = folder / "speedread", folder / "libraries.py", folder / "out.json"
        self.speedread.write_text(SPEEDREAD.format(python=sys.executable))
        self.speedread.chmod(self.speedread.stat().st_mode | stat.S_IXUSR)
        self.libraries.write_text(LIBRARIES)

    def tearDown(self):
        self.folder.cleanup()

    def run_it(self, *more, libraries=None):
        command = [sys.executable, HERE / "compare.py", "--speedread", self.speedread, "--libraries", libraries or f"{sys.executable} {self.libraries}",
                   "--heads", "4", "--kv-heads", "2", "--json", self.json, *more]
        return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

    def test_everybody_has_turns_and_ratios(self):
        done = self.run_it("--shapes", "1000x64,300000x64", "--rounds", "2", "--runs", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Gone is left out: no such module", done.stdout)
        self.assertIn("Odd: head dim 64 is not supported", done.stdout)
        self.assertIn("2.00x Fast", done.stdout)  # dense: 1 ms against 2
        self.assertIn("4.00x Fast", done.stdout)  # sparse: 0.5 ms
        short, long = json.loads(self.json.read_text())["rows"]
        self.assertEqual(short["dense"], {"speedread": [1.0, 1.0], "Fast": [2.0, 2.0]})
        self.assertEqual(short["sparse"]["vertical-slash-tiles:48,8"]["index_ms"], [0.125, 0.125])
        self.assertEqual(long["dense"], {"speedread": [300.0], "Fast": [600.0]})

    def test_ours_alone(self):
        done = self.run_it("--shapes", "1000x64", "--sparse", libraries="none")
        self.assertEqual(done.returncode, 0, done.stderr)
        row = json.loads(self.json.read_text())["rows"][0]
        self.assertEqual((list(row["dense"]), row["sparse"]), (["speedread"], {}))

    def test_what_fails_is_named(self):
        done = self.run_it("--shapes", "1000x128")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("bench attention --device cuda --heads 4/2/128", done.stderr)
        done = self.run_it(libraries=f"{sys.executable} -c pass")
        self.assertIn("--libraries none leaves the others out", done.stderr)


if __name__ == "__main__":
    unittest.main()
