"""hftoolkit's DQN against Stable-Baselines3's, alternately: same environment, network, batch and updates per step.

    pip install stable-baselines3
    python scripts/benchmark_dqn.py [--steps 20000] [--rounds 5] [--sb3-threads 2] [--set algorithm.double=false]

Both learn CartPole-v1 with the tuned settings of rl-baselines3-zoo. Each side is a process of its own; its rate is
environment steps over the time of learning, without start-up and evaluation. SB3's DQN is not Double, so its updates do
one forward pass less than ours as shipped; --set algorithm.double=false makes them equal. With --set
train.speedups=none, ours learns with plain PyTorch, as rl/dqn.py has it.

hftoolkit gives so small a network one thread, and this script gives SB3 one, too: beside other work, two threads that
wait for each other made SB3 20 times slower. Where nothing else runs, try --sb3-threads 2 as well.
"""

import argparse
import statistics
import subprocess
import sys
import time

UPDATE_EVERY, UPDATES, BATCH_SIZE, HIDDEN = 256, 128, 64, (256, 256)
SETTINGS = """
environment: {id: CartPole-v1, num_envs: NUM_ENVS}
algorithm:
  kind: dqn
  n_steps: 1
  learning_rate: 2.3e-3
  schedule: constant
  batch_size: 64
  replay_size: 100000
  learning_starts: 1000
  discount: 0.99
  target_update_every: 10
  update_every: 256
  updates: 128
  epsilon_fraction: 0.16
  epsilon_end: 0.04
evaluation: {curve_points: 0}
"""


def main() -> None:
    """Run both sides in turn and print their rates and the ratio of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-envs", type=int, default=8, help="copies that hftoolkit steps together; SB3 has one")
    parser.add_argument("--sb3-threads", type=int, default=1, help="threads of PyTorch on SB3's side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for hftoolkit rl train")
    parser.add_argument("--side", choices=["sb3", "hftoolkit"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(run_sb3(options) if options.side == "sb3" else run_hftoolkit(options))
        return
    ratios = []
    for number in range(options.rounds):
        order = ("sb3", "hftoolkit")[:: 1 if number % 2 == 0 else -1]
        rates = {side: measured(side) for side in order}
        ratios.append(rates["hftoolkit"] / rates["sb3"])
        print(
            f"round {number}: SB3 {rates['sb3']:.0f}, hftoolkit {rates['hftoolkit']:.0f} environment steps/s",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def measured(side: str) -> float:
    """Return the environment steps a second of one side, in a process of its own."""
    command = [sys.executable, *sys.argv, "--side", side]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def run_sb3(options: argparse.Namespace) -> float:
    """Return the rate of Stable-Baselines3."""
    import gymnasium
    import torch
    from stable_baselines3 import DQN

    torch.set_num_threads(options.sb3_threads)
    agent = DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2.3e-3,
        batch_size=BATCH_SIZE,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=UPDATE_EVERY,
        gradient_steps=UPDATES,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": list(HIDDEN)},
        device="cpu",
    )
    started = time.perf_counter()
    agent.learn(options.steps)
    return agent.num_timesteps / (time.perf_counter() - started)  # it ends with a burst, so a little later


def run_hftoolkit(options: argparse.Namespace) -> float:
    """Return the rate of hftoolkit, as its results.json has it."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        recipe, run = Path(folder) / "dqn.yaml", Path(folder) / "run"
        recipe.write_text(SETTINGS.replace("NUM_ENVS", str(options.num_envs)))
        command = [sys.executable, "-m", "hftoolkit", "rl", "train", str(recipe), "--run-dir", str(run)]
        command += ["--set", f"train.steps={options.steps}", "--set", "evaluation.episodes=1"]
        for override in options.set:
            command += ["--set", override]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((run / "results.json").read_text())["train"]["steps_per_second"])


if __name__ == "__main__":
    main()
