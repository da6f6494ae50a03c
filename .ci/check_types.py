"""Run pyrefly, and compare its errors a file with those known, which may only become fewer.

python .ci/check_types.py             fail if a file has more errors than .ci/type_errors.json says,
                                      or fewer: then run the next line
python .ci/check_types.py --update    write the counts of files that have fewer
python .ci/check_types.py --reset     write all counts, for the change of a version or of a path
"""

import collections
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
KNOWN = ROOT / ".ci" / "type_errors.json"


def errors() -> dict[str, list[str]]:
    """The errors of each file, as lines to print."""
    command = [pathlib.Path(sys.executable).with_name("pyrefly"), "check", "--output-format=json"]
    command += ["--summary=none", f"--python-interpreter-path={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    try:
        found = json.loads(done.stdout)["errors"]
    except ValueError:
        sys.exit(done.stderr.decode())
    lines = collections.defaultdict(list)
    for error in found:
        if error["severity"] == "error":
            text = f"{error['path']}:{error['line']}: {error['concise_description']}"
            lines[error["path"]].append(f"{text} [{error['name']}]")
    return lines


def main() -> None:
    lines = errors()
    counts = {path: len(lines[path]) for path in sorted(lines)}
    known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    more = [path for path in counts if counts[path] > known.get(path, 0)]
    fewer = [path for path in known if counts.get(path, 0) < known[path]]
    arguments = sys.argv[1:]
    if arguments == ["--reset"]:
        known, more, fewer = counts, [], []
    elif arguments == ["--update"]:
        known = {path: min(known[path], counts.get(path, 0)) for path in known}
        fewer = []
    elif arguments:
        sys.exit(__doc__)
    if arguments:
        known = {path: count for path, count in sorted(known.items()) if count}
        KNOWN.write_text(json.dumps(known, indent=1) + "\n")
    for path in more:
        print(*lines[path], sep="\n")
        print(f"{path} has {counts[path]} type errors, {known.get(path, 0)} are known\n")
    if fewer:
        print(f"Fewer type errors in {', '.join(fewer)}: run python .ci/check_types.py --update")
    print(f"{sum(counts.values())} type errors in {len(counts)} files")
    sys.exit(bool(more or fewer))


if __name__ == "__main__":
    main()
