"""Which meshes a transformer's heads and tokens can be divided among.

`sequence` divides the places of a frame. Around an attention over places the devices exchange
places for heads (Ulysses, arXiv 2309.14509), or for whole frames where each frame attends to itself
alone. `tensor` divides heads.
"""

from collections.abc import Mapping

from xgen_jax.errors import UserError


def check_attention(
    mesh: Mapping[str, int],
    heads: int,
    frames: int,
    grid: tuple[int, int],
    frames_apart: bool,
) -> None:
    """Check that the devices of a mesh get equal parts of a transformer's heads and tokens.

    Args:
      mesh: sizes by axis.
      heads: of the attention.
      frames: latent frames of a clip.
      grid: rows and columns of tokens of a frame.
      frames_apart: each frame attends to itself alone.

    Raises:
      UserError: it names the flags, and the sizes of the axis that would do.
    """
    tensor, sequence = mesh["tensor"], mesh["sequence"]
    rows, columns = grid
    if heads % tensor:
        raise UserError(
            f"--config.mesh.tensor={tensor} cannot divide {heads} attention heads "
            f"(--config.model.heads); {_others('tensor', heads)}"
        )

    def divides(n: int) -> bool:
        shared = heads % (tensor * n) == 0 or (frames_apart and frames % n == 0)
        return rows * columns % n == 0 and shared

    if divides(sequence):
        return
    possible = [n for n in range(1, sequence) if divides(n)]
    if rows * columns % sequence:
        what = f"the {rows}x{columns} = {rows * columns} tokens of a frame"
    else:
        what = f"{heads} attention heads (--config.model.heads)"
        if tensor > 1:
            what += f", which --config.mesh.tensor={tensor} divides already"
        if frames_apart:
            what += f", nor {frames} latent frames"
    raise UserError(
        f"--config.mesh.sequence={sequence} cannot divide {what}; smaller sizes that do: "
        f"{', '.join(map(str, possible))}"
    )


def _others(axis: str, count: int) -> str:
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return f"--config.mesh.{axis} may be {', '.join(map(str, divisors))}"
