"""``raylens answer`` as the command line has it; see jobs.steer."""

from __future__ import annotations

from typing import Annotated, cast

import typer

ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="A path or a URL; where there is no such file, a key of the run's data.ask (a file of that name in the "
        "working directory goes before it).",
        show_default=False,
    ),
]
Out = Annotated[
    str, typer.Option("--out", metavar="FILE", help="x.png: the picture after all answers; x.html: every step.")
]
Answers = Annotated[
    list[str] | None,
    typer.Option(
        "--answer",
        metavar="N=COLOUR",
        help="To question N, from 1: #c03020, red, lab:50,20,30 or the task's numbers y:0.2,0.1; may be repeated.",
    ),
]
Others = Annotated[
    str, typer.Option(metavar="truth|guess", help="Who answers the rest: the image, or what the network has there.")
]
Hints = Annotated[int, typer.Option(min=0, help="Questions that are answered; else as many as in its training.")]
Checkpoint = Annotated[
    int, typer.Option(min=0, metavar="EPOCH", help="The network after this epoch, if its checkpoint is kept.")
]


def answer(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run of 'raylens asking'.")],
    image: ImageArgument,
    out: Out,
    answers: Answers = None,
    others: Others = "truth",
    hints: Hints = 0,
    checkpoint: Checkpoint = 0,
) -> None:
    from jobs.asking import steer

    steer.form(out)  # before the network runs
    asked = steer.Asked(image, tuple(answers or ()), hints, cast(steer.Others, others), checkpoint)
    found = steer.answer(run, asked)
    steer.write(found, out)
    print("\n".join([*found.lines(), f"open {out}"]))
