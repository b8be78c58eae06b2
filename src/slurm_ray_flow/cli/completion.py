"""`srf completion`: the completion script of a shell."""

from __future__ import annotations

from typing import Annotated, Literal

from slurm_ray_flow.cli.output import Switch, print_text

Shell = Literal["bash", "zsh", "fish"]
ZSH_END = """
if (( $#funcstack )) && [[ ${funcstack[1]} == _* ]]; then
  _cyclopts_srf "$@"
else
  compdef _cyclopts_srf srf
fi
"""
"""With this end the script works as an autoloaded file of any name, and when it is sourced."""


def completion(shell: Shell, *, install: Annotated[bool, Switch] = False) -> None:
    """Write what makes a shell complete verbs and options.

    Examples:
        srf completion bash --install

        srf completion zsh > ~/.zfunc/_srf

        source <(srf completion bash)

    Args:
        shell: bash, zsh or fish.
        install: Put it where that shell looks, and say where; bash and zsh also get a line in their rc file.
    """
    from slurm_ray_flow.cli.main import app

    if install:
        print_text(f"Written to {app.install_completion(shell=shell)}; it holds in the next shell.")
    else:
        print(app.generate_completion(shell=shell) + (ZSH_END if shell == "zsh" else ""))  # noqa: T201 - the output
