"""Published mixtures, as the sums that they are, and what other names of the literature are called here."""

from __future__ import annotations

from typing import NamedTuple

from preftune.objective.demos import NLL
from preftune.objective.free import SimPO
from preftune.objective.grouped import GRPO
from preftune.objective.pairs import DPO
from preftune.objective.ratings import BCO
from preftune.objective.sum import Sum


class Preset(NamedTuple):
    """An objective under another name: objective = "mpo" in a file means the parts of a sum."""

    objective: Sum | NLL | GRPO
    meaning: str
    paper: str


PRESETS = {
    "sft": Preset(NLL(), "Supervised fine-tuning, as everybody calls nll: imitation of demos.", "2203.02155"),
    "mpo": Preset(
        Sum(parts=(DPO(beta=0.1), BCO(beta=0.1), NLL()), weights=(0.8, 0.2, 1.0)),
        "Mixed preference optimization: which is better, whether it is good, and how to write it.",
        "2411.10442",
    ),
    "irpo": Preset(
        Sum(parts=(DPO(beta=0.1), NLL()), weights=(1.0, 1.0)),
        "Iterative reasoning preference optimization: DPO and imitation of chosen, per token of the response.",
        "2404.19733",
    ),
    "regularized_dpo": Preset(
        Sum(parts=(DPO(beta=0.01), NLL()), weights=(1.0, 0.005)),
        "DPO with imitation as a provable brake on over-optimization; its paper calls it RPO.",
        "2405.16436",
    ),
    "cpo_simpo": Preset(
        Sum(parts=(SimPO(), NLL()), weights=(1.0, 1.0)),
        "SimPO and imitation of chosen, for when SimPO alone degenerates.",
        "2401.08417, 2405.14734",
    ),
    "dapo": Preset(
        GRPO(beta=0.0, clip_high=0.28, scale="group"),
        "GRPO without an anchor, which may raise a rare token further than it may lower one.",
        "2503.14476",
    ),
    "dr_grpo": Preset(
        GRPO(beta=0.0, norm="sum"),
        "GRPO done right: no response counts by its length, and no prompt by its group's deviation.",
        "2503.20783",
    ),
}

NAMES = {
    "cdpo": "objective=dpo objective.flip=0.1",
    "ipo_sum": "objective=ipo objective.per_token=false",
    "rso": "objective=hinge objective.beta=0.05",
    "ld_dpo": "objective=dpo aggregate=ld",
    "sampo": "objective=dpo aggregate=sampo",
    "d2po": "objective=dpo aggregate=decay",
    "tr_dpo": "objective=dpo objective.beta=0.05 reference=moving reference.alpha=0.6 reference.update_every=1",
    "tr_dpo_hard": "objective=dpo objective.beta=0.05 reference=moving reference.alpha=1 reference.update_every=512",
    "smaug": "objective=dpo_positive",
    "dpop": "objective=dpo_positive",
    "dpo_norm": "objective=ln_dpo",
    "sigmoid": "objective=dpo",
    "sigmoid_norm": "objective=ln_dpo",
    "exo_pair": "objective=exo",
    "nca_pair": "objective=nca",
    "bco_pair": "objective=bco",
    "kto_pair": "objective=kto",
    "aot_pair": "objective=aot",
    "sppo_hard": "objective=sppo",
    "aot_unpaired": "objective=aot objective.paired=false",
    "js_dpo": "objective=f_dpo objective.divergence=js",
    "infonca": "objective=info_nca",
    "listwise_dpo": "objective=plackett_luce",
    "apo_zero_unpaired": "objective=apo_zero",
    "alphapo": "objective=alpha_po",
    "rm": "objective=reward",
    "pt": "objective=nll",
    "bnpo": "objective=grpo",
    "luspo": "objective=gspo objective.norm=sum",
    "reinforce++": "objective=reinforce_pp",
    "best_of_k": "objective=dpo data.rankings=best",
}
"""Name elsewhere -> the words that make it here."""
