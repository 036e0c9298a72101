"""Make an environment that sees the packages of the Python that runs this: `environment.py FOLDER`.

`--system-site-packages` would pass over them where that Python has an environment of its own.
"""

import sys
import venv
from pathlib import Path


def main(folder: Path) -> None:
    """Create the environment unless it is there."""
    if (folder / "bin" / "python").exists():
        return
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("-packages")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in packages]
    (folder / "lib" / version / "site-packages" / "parent.pth").write_text("".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
