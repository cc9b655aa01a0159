"""The command `dsf-models`: list architectures and their fields, tell costs, inspect, convert or serve a model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .analysis import (
    BINS,
    architecture_rows,
    config_fields,
    count_parameters,
    decoding_flops,
    initial_spectrum,
    markdown_table,
    prefill_flops,
    state_bytes,
    text_table,
    training_flops,
)
from .backbone import DSFConfig, get_architecture
from .hub.card import folder_facts, model_card
from .hub.conversion import convert_checkpoint
from .hub.inspecting import RECORD, Tokens, inspect_checkpoint, summary
from .hub.publish import publish, write_card
from .hub.serving import serve
from .hub.usage import CommandParser, UsageError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words behind the command's name. Default: those of this process.

    Returns:
        Exit code: 0, or 2 where the input is wrong.
    """
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
    except UsageError as error:
        print(f"dsf-models: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="dsf-models", description="Sequence models as choices of (Λ, B, C, D).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="show all architectures")
    command.add_argument("--markdown", action="store_true", help="as a table in Markdown, as in the README")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="show what a configuration costs, and the spectrum it starts from")
    command.add_argument("architecture", metavar="ARCH", help="name of an architecture")
    command.add_argument("--config", type=Path, metavar="FILE", help="config.json to start from")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help='set a field (JSON or a bare word); may be repeated: --set num_heads=2 --set \'mixers=["ssd", "s4d"]\'',
    )
    command.add_argument("--length", type=int, default=1024, help="tokens of a sequence (default: %(default)s)")
    command.add_argument("--no-spectrum", action="store_true", help="build no model: for models larger than memory")
    command.set_defaults(run=_info)

    command = commands.add_parser("fields", help="show what can be set in an architecture's configuration")
    command.add_argument("architecture", metavar="ARCH", help="name of an architecture")
    command.add_argument("--own", action="store_true", help="only what is its own, or has a default of its own")
    command.set_defaults(run=_fields)

    _add_inspect(commands.add_parser("inspect", help="show spectrum, Φ and use of the state of a model, with figures"))

    command = commands.add_parser("convert", help="convert a language model of transformers, or convert it back")
    command.add_argument("source", metavar="SOURCE", help="folder, or id of a repository on the Hub")
    command.add_argument("target", metavar="TARGET_FOLDER", type=Path, help="folder to make; it must not exist")
    command.add_argument(
        "--to", choices=["dsf", "transformers"], default="dsf", help="format to make (default: %(default)s)"
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser("serve", help="answer OpenAI's HTTP interface with a language model")
    command.add_argument("model", metavar="MODEL", help="folder, or id of a repository on the Hub, with a tokenizer")
    command.add_argument("--host", default="localhost", help="address to listen at (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="its port (default: %(default)s)")
    command.add_argument("--device", default="auto", help='where the model runs, such as "cpu" (default: %(default)s)')
    command.add_argument("--dtype", default="auto", help="what weights are loaded in (default: as they were saved)")
    command.set_defaults(run=_serve)

    command = commands.add_parser("push", help="upload a checkpoint folder to the Hub, in one commit")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="folder made by save_pretrained")
    command.add_argument("repo_id", metavar="REPO_ID", help="name of the repository, as in user/model")
    command.add_argument("--private", action="store_true", help="upload only where others cannot see it")
    command.add_argument("--revision", metavar="R", help="branch to commit to (default: main)")
    command.set_defaults(run=_push)

    command = commands.add_parser("card", help="show the model card that follows from a checkpoint folder alone")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="folder made by save_pretrained")
    command.add_argument("--write", action="store_true", help="write it to the folder, as README.md")
    command.set_defaults(run=_card)
    return parser


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder, or id of a repository on the Hub")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--text", action="append", default=[], help="text to read; may be repeated, a row each")
    what.add_argument("--tokens", type=_numbers, default=[], metavar="I,J,…", help="token ids to read")
    what.add_argument("--length", type=int, help="length of random rows (default: 64, or the model's positions)")
    command.add_argument("--rows", type=int, help="number of random rows (default: 4)")
    command.add_argument("--layers", type=_numbers, metavar="I,J,…", help="layers to look at (default: all)")
    command.add_argument(
        "--output_dir",
        type=Path,
        default=Path("inspection"),
        metavar="FOLDER",
        help="to make (default: inspection)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the initialisation to compare with, and random tokens")
    command.set_defaults(run=_inspect)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers with commas between them") from error


def _inspect(options: argparse.Namespace) -> None:
    tokens = Tokens(options.text, options.tokens, options.length, options.rows)
    found = inspect_checkpoint(options.model, tokens, options.output_dir, layers=options.layers, seed=options.seed)
    print(summary(found))
    print(f"\nfigures and {RECORD} are in {options.output_dir}")


def _list(options: argparse.Namespace) -> None:
    table = markdown_table if options.markdown else text_table
    print(table(architecture_rows()))


def _fields(options: argparse.Namespace) -> None:
    fields = config_fields(_config_class(options.architecture))
    rows = [(field.name, field.shown, field.description) for field in fields if not (options.own and field.shared)]
    print(text_table(rows, ("field", "default", "meaning")))


def _convert(options: argparse.Namespace) -> None:
    family = convert_checkpoint(options.source, options.target, to_transformers=options.to == "transformers")
    ways = (family.title, family.architecture)
    print("{} -> {}: {}".format(*(ways if options.to == "dsf" else reversed(ways)), options.target))


def _serve(options: argparse.Namespace) -> None:
    serve(options.model, host=options.host, port=options.port, device=options.device, dtype=options.dtype)


def _push(options: argparse.Namespace) -> None:
    print(publish(options.folder, options.repo_id, private=options.private, revision=options.revision))


def _card(options: argparse.Namespace) -> None:
    if options.write:
        write_card(options.folder)
    else:
        print(model_card(folder_facts(options.folder)), end="")


def _info(options: argparse.Namespace) -> None:
    if options.length < 2:
        raise UsageError(f"--length={options.length}: give at least 2 tokens.")
    config = _config(options)
    print(f"{options.architecture}: {config.num_hidden_layers} layers, width {config.hidden_size}\n")
    print(text_table(_costs(config, options.length), ("cost", "")))
    if not options.no_spectrum:
        print("\n" + _spectrum(config))


def _config(options: argparse.Namespace) -> DSFConfig:
    """Return the configuration that the options describe."""
    try:
        config_class = _config_class(options.architecture)
        fields = _read_fields(options.config, config_class.model_type) if options.config else {}
        return config_class(**fields | dict(map(_assignment, options.set)))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _config_class(name: str) -> type[DSFConfig]:
    try:
        return get_architecture(name).config_class
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read_fields(path: Path, model_type: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config={path}: {error}; give a readable JSON file.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"--config={path}: holds a {type(fields).__name__}; give an object of fields.")
    given = fields.pop("model_type", model_type)
    if given != model_type:
        raise UsageError(f"model_type={given!r}: {path} configures another architecture than {model_type!r}.")
    return fields


def _assignment(text: str) -> tuple[str, Any]:
    field, separator, value = text.partition("=")
    if not (field and separator):
        raise UsageError(f"--set={text!r}: write FIELD=VALUE, for example --set hidden_size=512.")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def _costs(config: DSFConfig, length: int) -> list[tuple[str, str]]:
    parameters = count_parameters(config)
    training, prefill = (flops(config, length).total / length for flops in (training_flops, prefill_flops))
    return [
        ("parameters", f"{parameters.total:,}"),
        ("  body", f"{parameters.body:,}"),
        ("  embedding", f"{parameters.embedding:,}"),
        ("  head", f"{parameters.head:,}" if parameters.head else "0 (shared with the embedding)"),
        (f"state bytes per sequence, at {length:,} tokens", f"{state_bytes(config, length):,}"),
        (f"state bytes per sequence, at {2 * length:,} tokens", f"{state_bytes(config, 2 * length):,}"),
        (f"FLOPs per token, training on {length:,} tokens", f"{training:,.0f}"),
        (f"FLOPs per token, prefill of {length:,} tokens", f"{prefill:,.0f}"),
        (f"FLOPs per token, decoding behind {length:,} tokens", f"{decoding_flops(config, length).total:,}"),
    ]


def _spectrum(config: DSFConfig) -> str:
    histogram = initial_spectrum(config)
    found = sorted({realisation for realisation in histogram.realisations if realisation})
    parts = []
    if found:
        rows = [(name, f"{100 * float(share):.1f} %") for name, share in zip(BINS, histogram.mean, strict=True)]
        parts.append(text_table(rows, ("|λ| at step 0", f"share ({', '.join(found)} realisation)")))
    for reason in sorted({reason for reason in histogram.reasons if reason}):
        layers = [str(layer) for layer, why in enumerate(histogram.reasons) if why == reason]
        parts.append(f"no |λ| of layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: {reason}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
