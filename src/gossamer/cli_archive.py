"""The commands `pack` and `unpack`, and `inspect`, which tells what an archive or a model holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gossamer.options import Base, Json, ModelPath, Packed, Unpacked
from gossamer.terminal import reporting


def inspect(model: ModelPath, base: Base = None, json: Json = False) -> None:
    """Show what MODEL holds: parameters, MACs, bytes, peak memory, a table of layers, and what can be compressed.

    Of an archive: where its bytes go, tensor by tensor.
    """
    with reporting() as console:
        import msgspec

        from gossamer.archive import is_archive
        from gossamer.intake.onnx_file import load
        from gossamer.measuring.inspection import inspect as look
        from gossamer.report.text import print_archive, print_inspection

        if is_archive(model):
            from gossamer.archive.files import inspect_archive

            archive = inspect_archive(model, base)
            if json:
                console.give(msgspec.json.encode(archive))
            else:
                print_archive(archive, console.out)
            return
        found = look(load(model))
        if json:
            console.give(msgspec.json.encode(found))
        else:
            print_inspection(found, console.out)


def pack(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An ONNX file, or an archive, packed anew.", show_default=False)
    ],
    out: Packed = Path("model.goss"),
    base: Base = None,
    json: Json = False,
) -> None:
    """Store MODEL near its entropy, in one file; `gossamer unpack` gives the same bytes back.

    Whatever a model holds is coded as what it is: integers of any width, indices, zeros, floats. Every command that
    takes a model takes the archive as well.

    Examples:

        gossamer pack out/model.onnx -o model.goss

        gossamer pack new.onnx -o update.goss --base model.goss
    """
    with reporting() as console:
        import msgspec

        from gossamer.archive.files import pack_file
        from gossamer.report.text import print_pack

        facts = pack_file(model, out, base)
        if json:
            console.give(msgspec.json.encode(facts))
        else:
            print_pack(facts, out, base is not None, console.out)


def unpack(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="A .goss file that pack wrote.", show_default=False)
    ],
    out: Unpacked = Path("model.onnx"),
    base: Base = None,
    processes: Annotated[
        int, typer.Option(min=1, help="That decode at the same time; worth it from some ten million weights on.")
    ] = 1,
    json: Json = False,
) -> None:
    """Write the ONNX file that was packed, byte for byte.

    Examples:

        gossamer unpack model.goss -o model.onnx

        gossamer unpack update.goss -o new.onnx --base model.goss
    """
    with reporting() as console:
        import msgspec

        from gossamer.archive.files import unpack_file

        size = unpack_file(archive, out, base, processes=processes)
        if json:
            console.give(msgspec.json.encode({"artifact": str(out), "bytes": size}))
        else:
            console.say(f"{out}: {size:,} bytes")
