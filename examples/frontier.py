"""How much reward any policy can have at a given distance from its reference, in a world that can be listed."""

import numpy as np

from preftune.demo.enumerated import enumerated, expected, kl
from preftune.frontier.measure import Frontier


def main() -> None:
    """Print the ceiling, and a policy that is not on it: the reference sharpened, which knows no reward."""
    world, rng = enumerated(symbols=4, longest=6), np.random.default_rng(0)
    reference = rng.normal(size=(1, len(world.below), 5))  # logits of every token after every beginning
    reward = world.counts @ np.array([1.0, 0.5, -0.5, -1.0, 0.0])  # each token has a value, the end token none
    ref_logp = world.logp(reference)
    frontier = Frontier.exact(reward, ref_logp)
    print("  beta     KL  reward")
    for beta in (4.0, 2.0, 1.0, 0.5, 0.25):
        point = frontier.at_beta(beta)
        print(f"{point.beta:6.2f} {point.kl:6.3f} {point.reward:7.3f}")
    logp = world.logp(2 * reference)
    distance, gained = float(kl(logp, ref_logp)[0]), float(expected(logp, reward)[0])
    short = frontier.gap(gained, distance)
    print(f"a policy of KL {distance:.3f} and reward {gained:.3f} is {short:.3f} below the ceiling")


if __name__ == "__main__":
    main()
