"""An objective of your own: any callable that says what it reads. python examples/own_objective.py MODEL PAIRS [OUT]"""

import sys

from torch import Tensor
from torch.nn.functional import softplus

import preftune
from preftune.objective.responses import Pairs


def capped_dpo(pairs: Pairs) -> Tensor:
    """(pairs,) DPO whose margin counts no more beyond 40 nats: certain pairs are left alone."""
    return softplus(-0.1 * pairs.margin.clamp(max=40))


capped_dpo.kind = "pairs"  # what it is called with
capped_dpo.reads = {"reference", "votes"}  # `margin` needs the reference; soft labels weigh it with its mirror image


def main(model: str, pairs: str, out: str = "run") -> None:
    """Tune a model's folder on a file of pairs, and say what it did to held-out pairs."""
    run = preftune.Run(
        model=preftune.Model(path=model),
        data=preftune.Data(train=pairs, holdout=0.1),
        objective=capped_dpo,
        optim=preftune.Optim(lr=1e-4),
        out=out,
    )
    record = preftune.Record.open(preftune.train(run))
    print(f"accuracy on held-out pairs {record.start['accuracy']:.1%} -> {record.end['accuracy']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
