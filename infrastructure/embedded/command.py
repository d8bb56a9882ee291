"""The platform's command line, which the Makefile's targets call."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from infrastructure.embedded import cleaning, environment, reconciling, workspace
from infrastructure.embedded.demo import Demo
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.install import CHECKOUT, RUN
from infrastructure.embedded.lifecycle import Platform
from infrastructure.embedded.services import GATEWAY, RECONCILER, SERVICES, USERS
from infrastructure.embedded.stack import Stack

TAIL_LINES = 20
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130


def say(line: str) -> None:
    """Print `line` at once and in one piece, whichever thread writes and even when nobody reads any more."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def install(_: Platform) -> None:
    """Make the checkout's virtual environment, or bring it up to date."""
    workspace.ensure(CHECKOUT, RUN, say)


def up(platform: Platform) -> None:
    """Start everything that does not run and wait until it is ready."""
    changed = platform.up()
    say("" if changed else "Everything runs already.")
    places = {"API": GATEWAY.url, "Docs": f"{GATEWAY.url}/docs", "Health": f"{GATEWAY.url}/health"}
    places |= {service.name: f"{platform.url(service)}/docs" for service in SERVICES if service is not GATEWAY}
    places |= {"Logs": f"{_relative(RUN / cleaning.LOGS)}/*.log, or make logs"}
    for name, where in places.items():
        say(f"{name:<22}{where}")


def infra(platform: Platform) -> None:
    """Start the engines alone."""
    if not platform.infra():
        say("The engines run already.")
    say(f"For a shell: set -a; . {_relative(RUN / cleaning.ENVIRONMENT)}; set +a")


def down(platform: Platform) -> None:
    """Stop everything; the data stays."""
    if not platform.down():
        say("Nothing runs.")


def status(platform: Platform) -> None:
    """Show what runs."""
    for line in platform.status():
        say(f"{line.name:<21}{line.state:<13}{line.pid or '':<9}{line.where}".rstrip())


def logs(platform: Platform) -> None:
    """Follow all logs."""
    files = platform.logs()
    if not files:
        raise EmbeddedError("There are no logs yet: run `make up` first.")
    os.execvp("tail", ["tail", "-n", str(TAIL_LINES), "-F", *map(str, files)])  # noqa: S606


def reset(platform: Platform) -> None:
    """Stop everything and remove its data, once the person at the keyboard agrees."""
    if not os.environ.get("FORCE"):
        say("This stops the platform and removes all its data: users, wallets, transactions, logs.")
        print("Type yes to go on: ", end="", flush=True)
        if sys.stdin.readline().strip() != "yes":
            raise EmbeddedError("Nothing was removed.")
    platform.down()
    platform.remove_data()
    say("All data is gone.")


def demo(_: Platform) -> None:
    """Play the README's sample calls."""
    Demo(say).run()
    say("All calls were answered as the README says.")


def reconcile(_: Platform) -> None:
    """Check that all the money adds up; the process becomes the one that does."""
    variables = reconciling.variables(RUN / cleaning.ENVIRONMENT, os.environ)
    _become(variables, CHECKOUT / RECONCILER.folder, "ledger_reconciler")


def audit_verify(_: Platform) -> None:
    """Walk the audit's chains; the process becomes the one that does."""
    variables = reconciling.variables(RUN / cleaning.ENVIRONMENT, os.environ)
    _become(variables, CHECKOUT / RECONCILER.folder, "ledger_reconciler.audit")


def replay(_: Platform) -> None:
    """Publish again what the audit has; the process becomes the one that does."""
    variables = _leading_to(
        ["postgres", "mongodb", "kafka"],
        "There is nothing to replay: run `make up` first, or name the servers by POSTGRES_HOST, MONGO_HOST and "
        "KAFKA_BOOTSTRAP_SERVERS.",
    )
    topic, since = (os.environ.get(name, "") for name in ("TOPIC", "SINCE"))
    _become(variables, CHECKOUT, "shared.replay", topic, since)


def create_admin(_: Platform) -> None:
    """Make an admin; the process becomes user-service's command that does."""
    variables = _leading_to(
        ["postgres"],
        "There is no database to make an admin in: run `make up` first, or name one by the POSTGRES_* variables.",
    )
    _become(variables, CHECKOUT / USERS.folder, "user_service")


def dlq_list(_: Platform) -> None:
    """Show the dead letters."""
    _dead_letters("list")


def dlq_replay(_: Platform) -> None:
    """Put dead letters back where they came from."""
    _dead_letters("replay")


def _dead_letters(command: str) -> None:
    """The process becomes the one that does; ARGS of the environment choose among the letters."""
    variables = _leading_to(
        ["kafka"], "There is no broker to ask: run `make up` first, or name one by KAFKA_BOOTSTRAP_SERVERS."
    )
    arguments = [command, *shlex.split(os.environ.get("ARGS", ""))]
    _become(variables, CHECKOUT, "shared.dlq", *arguments)


def _leading_to(engines: Sequence[str], otherwise: str) -> dict[str, str]:
    """The environment for a command on the platform's data; raises EmbeddedError with the sentence `otherwise`."""
    variables = environment.leading_to(engines, RUN / cleaning.ENVIRONMENT, os.environ)
    if variables is None:
        raise EmbeddedError(otherwise)
    return variables


def _become(variables: Mapping[str, str], folder: Path, *arguments: str) -> NoReturn:
    """Run `python -m` with these arguments in the folder, in place of this process."""
    os.chdir(folder)
    os.execve(sys.executable, [sys.executable, "-m", *arguments], variables)  # noqa: S606


COMMANDS: dict[str, Callable[[Platform], None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        install,
        up,
        down,
        status,
        logs,
        infra,
        demo,
        reconcile,
        audit_verify,
        replay,
        dlq_list,
        dlq_replay,
        create_admin,
        reset,
    )
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status; what went wrong is one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infrastructure.embedded", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    chosen = COMMANDS[parser.parse_args(arguments).command]
    for number in INTERRUPTIONS:
        signal.signal(number, _interrupt)
    try:
        stack = Stack(RUN, report=say)
        chosen(Platform(CHECKOUT, stack, python=Path(sys.executable), environ=os.environ, report=say))
    except EmbeddedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"error: The system refused something: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: Interrupted; what this command had started is stopped.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End the command; a second signal (an impatient Ctrl-C) must not interrupt the stopping of what it started."""
    for number in INTERRUPTIONS:
        signal.signal(number, lambda _number, _frame: None)
    raise KeyboardInterrupt


def _relative(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))
