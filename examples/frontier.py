"""How much reward any policy can have at a given distance from its reference, in a world that can be listed."""

import torch

from preftune.frontier.measure import Frontier
from preftune.tradeoff.world import enumerated, expected, kl


def main() -> None:
    """Print the ceiling, and a policy that is not on it: the reference sharpened, which knows no reward."""
    world, noise = enumerated(symbols=4, longest=6), torch.Generator().manual_seed(0)
    reference = torch.randn(1, len(world.below), 5, generator=noise)  # logits of every token after every beginning
    reward = world.counts @ torch.tensor([1.0, 0.5, -0.5, -1.0, 0.0]).double()  # of each token; the end token has none
    ref_logp = world.logp(reference.double())
    frontier = Frontier.exact(reward.numpy(), ref_logp.numpy())
    print("  beta     KL  reward")
    for beta in (4.0, 2.0, 1.0, 0.5, 0.25):
        point = frontier.at_beta(beta)
        print(f"{point.beta:6.2f} {point.kl:6.3f} {point.reward:7.3f}")
    logp = world.logp(2 * reference.double())
    distance, gained = float(kl(logp, ref_logp)), float(expected(logp, reward))
    short = frontier.gap(gained, distance)
    print(f"a policy of KL {distance:.3f} and reward {gained:.3f} is {short:.3f} below the ceiling")


if __name__ == "__main__":
    main()
