"""The same as examples/dpo.toml in Python: python examples/tune.py MODEL PAIRS [OUT]"""

import sys

import preftune
from preftune import DPO, Data, Model, Optim, Run


def tune(model: str, pairs: str, out: str = "run") -> None:
    """Tune a model's folder on a file of pairs and say what it did to held-out pairs."""
    run = Run(
        model=Model(path=model),
        data=Data(train=pairs, holdout=0.1),
        objective=DPO(beta=0.1),
        optim=Optim(lr=1e-5, epochs=1),
        out=out,
    )
    record = preftune.Record.open(preftune.train(run))
    print(f"accuracy on held-out pairs {record.start['accuracy']:.1%} -> {record.end['accuracy']:.1%}")
    for finding in preftune.diagnose(record):
        print(f"{finding.severity}: {finding.title}. {finding.evidence}")
    print(record.path / "report.html")


if __name__ == "__main__":
    tune(*sys.argv[1:])
