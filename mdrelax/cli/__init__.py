"""The command line: `mdrelax` and its subcommands. Heavy imports are deferred until a subcommand is chosen.

Exit codes: 0 success, 1 unexpected error, 2 config, 3 data, 4 certificate refused, 130 Ctrl-C, 143 SIGTERM.
"""

import contextlib
import dis
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import typer

from mdrelax.base.words import warnings_in_words
from mdrelax.cli import (
    audit,
    bench,
    compare,
    configs,
    data,
    data_files,
    evaluate,
    fine_tune,
    models,
    phonons,
    runs,
    select,
    simulate,
    train,
    vibrations,
)
from mdrelax.cli.ending import end_of, lost_words, received, stop_when_terminated
from mdrelax.cli.output import reading_bar
from mdrelax.cli.sentences import memory_sentence, one_line, refuse_endless_numbers, usage_sentence
from mdrelax.runs.jobs import ELASTIC, end_with_parent

__all__ = ["app", "main", "stop_when_terminated"]

app = typer.Typer(
    name="mdrelax",
    help="Interatomic potentials trained with relaxed equivariance and projected back to exact symmetry. (`relax` here "
    "means the symmetry constraint, not a geometry: to relax a geometry, use the calculator with an ASE optimiser.)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("fine-tune")(fine_tune.fine_tune)
data.app.command("select")(select.select)
data.app.command("convert")(data_files.convert)
data.app.command("split")(data_files.split)
app.add_typer(data.app, name="data")
app.add_typer(configs.app, name="config")
app.add_typer(bench.app, name="bench")
app.command("md")(simulate.md)
app.command("vibrations")(vibrations.vibrations)
app.command("phonons")(phonons.phonons)
app.command("audit")(audit.audit)
app.command("eval")(evaluate.evaluate)
app.command("project")(models.project)
app.command("export")(models.export)
app.command("predict")(models.predict)
app.command("compare")(compare.compare)
app.command("runs")(runs.runs)
app.command("report")(train.report)
app.command("info")(models.info)
refuse_endless_numbers(app)

CONFIG, DATA, CERTIFICATE, OTHER = 2, 3, 4, 1


def main() -> None:
    """Run the command line; an error prints its message only, with the traceback if MDRELAX_DEBUG=1."""
    stop_when_terminated(_end_at_once)
    end_with_parent()
    with lost_words(app, sys.argv[1:]):
        try:
            with home_left_alone(), warnings_in_words(), reading_bar():
                code = app(standalone_mode=False, prog_name="mdrelax")
            if received() or code:  # typer returns 130 for a KeyboardInterrupt
                _fail(*end_of(app, sys.argv[1:]))
        except (typer.Abort, KeyboardInterrupt):
            _fail(*end_of(app, sys.argv[1:]))
        except Exception as error:
            if received():  # it was raised while the command was being ended
                _fail(*end_of(app, sys.argv[1:]))
            if hasattr(error, "show"):  # click's own usage errors
                if sentence := usage_sentence(error):
                    _fail(sentence, CONFIG)
                error.show()
                sys.exit(CONFIG)
            _explain(error)


@contextlib.contextmanager
def home_left_alone() -> Iterator[None]:
    """Keep matplotlib from writing its font cache into the home directory; it is removed when the command ends."""
    home = Path.home()
    places = [Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "matplotlib", home / ".matplotlib"]
    if "MPLCONFIGDIR" in os.environ or any(place.is_dir() for place in places):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def _end_at_once() -> None:
    sentence, code = end_of(app, sys.argv[1:])
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
    os._exit(code)


def _explain(error: Exception) -> None:
    if os.environ.get("MDRELAX_DEBUG"):
        traceback.print_exc()
    from mdrelax.analysis.geometry import NotRelaxedError
    from mdrelax.base.files import InUseError
    from mdrelax.base.sections import ConfigError
    from mdrelax.compiled import CompileError
    from mdrelax.engines.md import ExplodedError
    from mdrelax.method.certificate import CertificateError
    from mdrelax.modelfile import ModelFileError
    from mdrelax.training.checkpoint import CheckpointError
    from mdrelax.training.ranks import LostRankError
    from mdrelax.training.trainer import TrainingError

    if isinstance(error, ConfigError):
        _fail(str(error), CONFIG)
    if sentence := memory_sentence(error):
        _fail(sentence, OTHER)
    if isinstance(error, CertificateError):
        _fail(str(error), CERTIFICATE)
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        _fail(f"There is no file `{error.filename}`.", DATA)
    if isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and is_sentence(error)):
        _fail(getattr(error, "strerror", None) or str(error), DATA)
    if isinstance(error, OSError) and error.strerror and error.filename is None:  # our own message
        _fail(error.strerror, OTHER)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        _fail(
            f"`{error.filename}` cannot be used ({error.strerror}): check its permissions, or name another place.",
            OTHER,
        )
    own = (
        CheckpointError, CompileError, ExplodedError, InUseError, LostRankError, ModelFileError, NotRelaxedError,
        TrainingError,
    )  # fmt: skip
    ours = isinstance(error, own) or (is_sentence(error) and not isinstance(error, LookupError))
    _fail(str(error) if ours else f"{type(error).__name__}: {error}", OTHER)


def is_sentence(error: BaseException) -> bool:
    """True for an error raised by this package with a message for the user.

    All others (numpy's, torch's, failed unpacking) are mistakes in a program, ours or the user's, not in the data.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "mdrelax":
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _fail(message: str, code: int) -> None:
    if ELASTIC in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
    typer.echo(one_line(message), err=True)
    sys.exit(code)
