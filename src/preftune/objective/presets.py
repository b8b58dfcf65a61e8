"""Published mixtures, as the sums that they are. Each is written in a file as its parts."""

from __future__ import annotations

from preftune.objective.combine import Sum
from preftune.objective.demos import NLL
from preftune.objective.free import SimPO
from preftune.objective.pairs import DPO
from preftune.objective.ratings import BCO

MPO = Sum(parts=(DPO(beta=0.1), BCO(beta=0.1), NLL()), weights=(0.8, 0.2, 1.0))
"""Mixed preference optimisation (arXiv 2411.10442): which is better, whether it is good, and how to write it."""

IRPO = Sum(parts=(DPO(beta=0.1), NLL()), weights=(1.0, 1.0))
"""Iterative reasoning preference optimisation (arXiv 2404.19733), the imitation per token of the response."""

REGULARISED_DPO = Sum(parts=(DPO(beta=0.01), NLL()), weights=(1.0, 0.005))
"""DPO with imitation as a provable brake on over-optimisation (arXiv 2405.16436, also called RPO)."""

CPO_SIMPO = Sum(parts=(SimPO(), NLL()), weights=(1.0, 1.0))
"""SimPO and imitation of chosen, for when SimPO alone degenerates."""

PRESETS = {"mpo": MPO, "irpo": IRPO, "regularised_dpo": REGULARISED_DPO, "cpo_simpo": CPO_SIMPO}
