"""compare.py against stand-ins for speedread and for the other libraries."""
import json
import os
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
print(json.dumps({{"version": "9.9", "commit": "abc", "rows": [row(p) for p in patterns]}}))
"""

# Prints a row for what it was given.
ALONE = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps({{"kernel": options["--kernel"], "n": int(options["--n"]), "dim": int(options.get("--dim", 128)), "case": options.get("--case", "all"),
                  "heads": int(options["--heads"]), "ms": 1.0, "tflops": 2.0}}))
"""

SMI = """#!{python}
import sys, time
if "-lms" not in sys.argv:
    print("Some GPU, 1.2, 1980 MHz, 3201 MHz, 700.00 W")
    sys.exit()
while True:
    print("1500, 3201, 400.5", flush=True)
    print("1700, 3201, [N/A]", flush=True)
    print("1800, 3201, 600.5", flush=True)
    time.sleep(0.02)
"""

LIBRARIES = """
import json, sys
print(json.dumps({"libraries": ["Fast", "Odd"], "missing": {"Gone": "no such module"}, "versions": {"fast": "1.0"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    with open(sys.argv[0] + ".requests", "a") as log:
        log.write(line)
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

    def program(self, name, text):
        path = pathlib.Path(self.folder.name) / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def run_it(self, *more, libraries=None, path=None):
        command = [sys.executable, HERE / "compare.py", "--speedread", self.speedread, "--libraries", libraries or f"{sys.executable} {self.libraries}",
                   "--heads", "4", "--kv-heads", "2", "--json", self.json, *more]
        return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60,
                              env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]})

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
        # In front of the long run there is a short one, which does not count.
        asked = [json.loads(line) for line in pathlib.Path(f"{self.libraries}.requests").read_text().splitlines()]
        self.assertEqual([(request["n"], request["warm_up"]) for request in asked[-2:]], [(8192, 0.3), (300000, 0)])
        result = json.loads(self.json.read_text())
        self.assertEqual(result["libraries"]["versions"], {"fast": "1.0"})
        self.assertEqual(result["speedread"], {"version": "9.9", "commit": "abc"})

    def test_ours_alone(self):
        done = self.run_it("--shapes", "1000x64", "--sparse", libraries="none")
        self.assertEqual(done.returncode, 0, done.stderr)
        row = json.loads(self.json.read_text())["rows"][0]
        self.assertEqual((list(row["dense"]), row["sparse"]), (["speedread"], {}))

    def test_kernels_alone_make_the_record_whole(self):
        binary = self.program("bench_attention", ALONE)
        done = self.run_it("--shapes", "1000x64", "--alone", "--bench-attention", binary, libraries="none")
        self.assertEqual(done.returncode, 0, done.stderr)
        alone = json.loads(self.json.read_text())["alone"]
        self.assertEqual([(row["kernel"], row["n"], row["dim"], row["case"]) for row in alone["rows"]],
                         [("sm90", 131072, 128, "all"), *(("portable", 32768, dim, "dense") for dim in (128, 96, 64))])
        self.assertTrue(alone["command"].startswith("bench_attention --n 131072 --kernel sm90 --heads 4 --kv-heads 2; "), alone["command"])
        self.assertIn("commit", alone)
        # benchmarks/report.py makes tables of it.
        sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))
        import report
        result = json.loads(self.json.read_text())
        self.assertIn("| 32,768 | 96 | dense |", "\n".join(report.attention_alone(result)))
        done = self.run_it("--shapes", "1000x64", "--alone", "--bench-attention", "nowhere/bench_attention", libraries="none")
        self.assertIn("--example bench_attention", done.stderr)

    def test_clocks_are_watched(self):
        self.program("nvidia-smi", SMI)
        done = self.run_it("--shapes", "1000x64", "--rounds", "4", libraries="none", path=self.folder.name)
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(self.json.read_text())
        self.assertEqual(result["gpu"], "Some GPU, 1.2, 1980 MHz, 3201 MHz, 700.00 W")
        # The least, the median and the most; samples with a field that is not known are left out.
        clocks = result["rows"][0]["clocks"]
        self.assertEqual((clocks["clocks.sm"][0], clocks["clocks.sm"][2]), (1500, 1800))
        self.assertEqual(clocks["clocks.mem"], [3201, 3201, 3201])

    def test_what_fails_is_named(self):
        done = self.run_it("--shapes", "1000x128")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("bench attention --device cuda --heads 4/2/128", done.stderr)
        done = self.run_it(libraries=f"{sys.executable} -c pass")
        self.assertIn("--libraries none leaves the others out", done.stderr)


if __name__ == "__main__":
    unittest.main()
