"""The tests that meet transformers' own code, run in each minor version that is supported.

A session installs its transformers into a virtual environment of its own, which sees every other
package (torch above all) where nox itself runs: nothing large is downloaded twice.
"""

import site
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

TESTS = [
    "tests/integrations",
    "tests/golden",
    "tests/test_loading.py",
    "tests/blocks",
    "tests/source",
    "tests/test_remote_code.py",
    "tests/test_source.py",
]


@nox.session
@nox.parametrize("version", ["5.17", "5.20", "5.23"])
def transformers(session: nox.Session, version: str) -> None:
    """transformers VERSION.*: loading, saving, generating, and walking a model's blocks."""
    inside = session.run(
        "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True
    )
    # Later on sys.path than the session's own packages, so that these win.
    Path(str(inside).strip(), "outside.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    session.install(f"transformers=={version}.*")
    session.run("python", "-c", f"import transformers as t; assert t.__version__.startswith('{version}.')")
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-n2",
        *TESTS,
        *session.posargs,
        env={"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
    )
