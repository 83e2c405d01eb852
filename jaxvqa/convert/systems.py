"""The systems whose checkpoints the command reads and writes, by the names that it gives them."""

from jaxvqa.convert import blip_huggingface, cmsa, flamingo, mevf, mtpt, rwsan, sysu_hcp, towers
from jaxvqa.convert.original import System

SYSTEMS: dict[str, System] = {
    **rwsan.SYSTEMS,
    **cmsa.SYSTEMS,
    **mevf.SYSTEMS,
    **mtpt.SYSTEMS,
    **sysu_hcp.SYSTEMS,
    **flamingo.SYSTEMS,
    **blip_huggingface.SYSTEMS,
    **towers.SYSTEMS,
}
