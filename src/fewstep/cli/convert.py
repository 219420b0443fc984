"""`fewstep convert`: files of research code become folders that every command reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, path
from .show import errors, say

app = typer.Typer(help="Make a model folder of a published file: of EDM, ADM or ScoreSDE.", no_args_is_help=True)

Given = Annotated[Path, typer.Argument(parser=path, metavar="FILE", help="The file, as its authors published it.")]
Out = Annotated[Path, typer.Argument(parser=path, metavar="OUT", help="The folder, which must hold no model.")]
Config = Annotated[str | None, typer.Option(help="A published configuration's name, or a JSON file of its fields.")]


@app.command()
def edm(
    file: Given,
    out: Out,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Needed for a pickle, of a source you trust.")
    ] = False,
    debug: Debug = False,
) -> None:
    """A network of EDM (.pkl): SongUNet or DhariwalUNet with EDM's, VP's or VE's preconditioning.

    Opened the usual way a pickle executes code. Here nothing of it is executed: it is read by a process of its own,
    without secrets and, on Linux, without network, with limited memory. It asks for --trust-pickle all the same.
    """
    with errors(debug):
        from ..adapters.research.convert import convert_edm

        say(f"{file}: {convert_edm(file, out, trust_pickle=trust_pickle)}")
    say(f"the model is {out}: fewstep sample --model {out}")


@app.command()
def adm(
    file: Given,
    out: Out,
    classifier: Annotated[Path | None, typer.Option(parser=path, metavar="FILE", help="Its noisy classifier.")] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """A network of guided-diffusion (.pt), and its classifier.

    Published files are known by their names; others need --config, whose fields docs/checkpoints.md lists.
    """
    with errors(debug):
        from ..adapters.research.convert import convert_adm

        say(f"{file}: {convert_adm(file, out, classifier=classifier, config=config)}")
    say(f"the model is {out}: fewstep sample --model {out}")


@app.command("score-sde")
def score_sde(file: Given, out: Out, config: Config = None, debug: Debug = False) -> None:
    """A continuous checkpoint of score_sde_pytorch (.pth): DDPM++ or NCSN++, VP or VE.

    Published files are known by their folders; others need --config, whose fields docs/checkpoints.md lists.
    """
    with errors(debug):
        from ..adapters.research.convert import convert_score_sde

        say(f"{file}: {convert_score_sde(file, out, config=config)}")
    say(f"the model is {out}: fewstep sample --model {out}")
