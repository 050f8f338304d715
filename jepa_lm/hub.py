"""Share exports on the Hugging Face hub: `python -m jepa_lm.hub push FOLDER USER/NAME`, and `pull`."""

from __future__ import annotations

import sys
from pathlib import Path

from jepa_lm.utils.crash import command
from jepa_lm.utils.output import say
from jepa_lm.utils.parser import Parser


def _run(words: list[str]) -> None:
    parser = Parser(prog="python -m jepa_lm.hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="upload an export in one commit")
    push.add_argument("export", help="the folder of an export, its artifact, or last")
    push.add_argument("repo", metavar="USER/NAME", help="a model repo; created if it is missing")
    push.add_argument("--private", action="store_true", help="create it as a private repo")
    pull = commands.add_parser("pull", help="fetch an export")
    pull.add_argument("repo", metavar="USER/NAME", help="a model repo")
    pull.add_argument("folder", nargs="?", type=Path, help="default: NAME")
    pull.add_argument("--revision", help="a branch, a tag or a commit; default: main")
    asked = parser.parse_args(words)
    if asked.command == "push":
        from jepa_lm.artifact.hub_push import push as send

        say(f"pushed to {send(asked.export, 'USER/NAME', asked.repo, asked.private)}")
        return
    from jepa_lm.artifact.hub_repo import model_repo
    from jepa_lm.artifact.hub_repo import pull as fetch

    name = asked.repo if asked.revision is None else f"{asked.repo}@{asked.revision}"
    repo = model_repo("USER/NAME", name)
    say(f"pulled {fetch(repo, asked.folder or Path(repo.repo_id.partition('/')[2]))}")


def main(words: list[str]) -> int:
    """Push or pull. Return exit code 0, or 2 after one line of error."""
    return command(lambda: _run(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
