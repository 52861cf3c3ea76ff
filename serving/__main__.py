"""The door to this room: `python -m serving serve` runs the service, `python -m serving build` writes a Bento."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from esteira.errors import EsteiraError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code follows the kind of failure, and the letter goes to standard error."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            from serving.process import serve

            return serve(
                bundle=options.bundle,
                bento=options.bento,
                lines=options.line,
                host=options.host,
                port=options.port,
                record=options.record,
                detached=options.detached,
            )
        from serving.bento import build
        from serving.lifeline import die_with_parent

        die_with_parent(os.getppid(), signal.SIGKILL)
        built = build(options.bundle, options.out, line=options.line, version=options.version)
        print(json.dumps({"bento": str(built.tag), "bundle_id": built.bundle_id, "files": built.files}))
        return 0
    except EsteiraError as error:
        print(json.dumps({"error": error.to_dict()}) if options.json else f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve models, or build a Bento.")
    commands = parser.add_subparsers(dest="command", required=True)

    serve = commands.add_parser(
        "serve",
        help="serve a bundle, a Bento or lines",
        description="Serve until told to stop; prints `READY http://HOST:PORT`. Example: python -m serving serve --line tabular --port 0",
    )
    serve.add_argument("--bundle", type=Path, help="a bundle folder")
    serve.add_argument("--bento", type=Path, help="a built Bento's folder")
    serve.add_argument("--line", action="append", default=[], help="a model line, by its champion; may be given again")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default 8080)")
    serve.add_argument(
        "--record", action=argparse.BooleanOptionalAction, help="keep records of predictions (default: for lines)"
    )
    serve.add_argument("--detached", action="store_true", help="go on when the process that started this one ends")

    build = commands.add_parser(
        "build",
        help="write a Bento that carries a bundle",
        description="Write a Bento. Example: python -m serving build --bundle build/tabular/evaluate/bundle --out build/tabular/bento",
    )
    build.add_argument("--bundle", type=Path, required=True, help="the bundle folder it carries")
    build.add_argument("--out", type=Path, required=True, help="folder of the Bento; replaced if it is one")
    build.add_argument("--line", default="", help="line it answers for (default: the bundle's)")
    build.add_argument("--version", type=int, help="registered version it answers with")
    for command in (serve, build):
        command.add_argument("--json", action="store_true", help="print a failure as one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
