"""What both pages' sections are made with."""
import pathlib

HERE = pathlib.Path(__file__).resolve().parent


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def recorded(result):
    where = ", ".join(str(result[key]) for key in ("cpu", "gpu", "device") if key in result)
    threads = f", {result['threads']} threads" if "threads" in result else ""
    commit = f", commit {result['commit']}" if "commit" in result else ""
    return f"Recorded {result['date']}{' on ' + where if where else ''}{threads}{commit}: `{result['command']}`"


def percent(x, digits=1):
    return f"{100 * x:.{digits}f} %"
