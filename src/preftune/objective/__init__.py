"""Objectives: the config part is the formula. `Objective` is the only list of them."""

from typing import get_args

from preftune.objective.base import READS, Formula, expected, loss_of
from preftune.objective.coupled import AOT, WPO, BetaDPO, DrDPO
from preftune.objective.demos import NLL
from preftune.objective.divergence import FDPO, ODPO, REBEL, RPO, ChiPO
from preftune.objective.free import CPO, ORPO, AlphaPO, SimPER, SimPO, SLiC
from preftune.objective.grouped import CISPO, GRPO, GSPO, SAPO
from preftune.objective.margins import EXO, IPO, SPPO, APODown, CalDPO, Hinge
from preftune.objective.own import OwnObjective, own_objective
from preftune.objective.pairs import DPO, RDPO, DPOPositive, HyPO, LengthNormalizedDPO, RobustDPO, dpo_loss
from preftune.objective.rankings import NCA, InfoNCA, PlackettLuce
from preftune.objective.ratings import BCO, DRO, KTO, QRPO, APOZero
from preftune.objective.reward import Reward
from preftune.objective.rollouts import PPO, RLOO, ReinforcePP

Single = (
    DPO | IPO | KTO | ORPO | SimPO | NLL
    | RobustDPO | LengthNormalizedDPO | RDPO | DPOPositive | HyPO | Hinge | EXO | SPPO | CalDPO | APODown
    | FDPO | ChiPO | ODPO | RPO | REBEL
    | SLiC | CPO | AlphaPO | SimPER
    | AOT | BetaDPO | DrDPO | WPO
    | APOZero | BCO | QRPO | DRO
    | PlackettLuce | InfoNCA | NCA
    | Reward
)  # fmt: skip

from preftune.objective.sum import Sum, of_scores, parts, uses_reference  # noqa: E402  a sum is made of the above

Online = PPO | RLOO | GRPO | GSPO | CISPO | SAPO | ReinforcePP  # of drawn tokens; they stand in no sum
Objective = Single | Online | Sum
BY_NAME: dict[str, type[Formula]] = {table.__struct_config__.tag: table for table in get_args(Single | Online)}
__all__ = [
    "AOT", "BCO", "BY_NAME", "CISPO", "CPO", "DPO", "DRO", "EXO", "FDPO", "GRPO", "GSPO", "IPO", "KTO", "NCA", "NLL",
    "ODPO", "ORPO", "PPO", "QRPO", "RDPO", "READS", "REBEL", "RLOO", "RPO", "SAPO", "SPPO", "WPO", "APODown", "APOZero",
    "AlphaPO", "BetaDPO", "CalDPO", "ChiPO", "DPOPositive", "DrDPO", "Formula", "Hinge", "HyPO", "InfoNCA",
    "LengthNormalizedDPO", "Objective", "Online", "OwnObjective", "PlackettLuce", "ReinforcePP", "Reward", "RobustDPO",
    "SLiC", "SimPER", "SimPO", "Single", "Sum", "dpo_loss", "expected", "loss_of", "of_scores", "own_objective",
    "parts", "uses_reference",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
