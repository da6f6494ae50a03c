"""`python -m xgen_jax COMMAND --flag=value ...`: the commands of launch/, from anywhere."""

import ast
import pathlib
import runpy
import sys

from xgen_jax.errors import UserError, choose


def commands() -> dict[str, pathlib.Path]:
    """The commands: name -> file."""
    here = pathlib.Path(__file__).resolve().parent
    folder = here / "launch"  # where setup.py installs it
    if not folder.is_dir():
        folder = here.parent / "launch"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "command"}


def main() -> None:
    known = commands()
    if len(sys.argv) < 2 or sys.argv[1] in ("--help", "-help", "-h", "help"):
        print("python -m xgen_jax COMMAND --flag=value ...\n\ncommands:")
        for name, path in known.items():
            about = ast.get_docstring(ast.parse(path.read_text())) or ""
            print(f"  {name:12} {about.split('.')[0]}".replace("\n", " "))
        print("\npython -m xgen_jax COMMAND --help shows a command's flags.")
        return
    try:
        path = known[choose("command", sys.argv[1], known)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # As `python launch/NAME.py`: its folder is where it finds the module that starts it.
    sys.argv[:2] = [str(path)]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
