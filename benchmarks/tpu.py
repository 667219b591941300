"""Memory, operations and collectives of every recipe card on TPUs, by the compiler alone.

    pip install -e '.[train,tpu]'
    python -m benchmarks.tpu --topology v5e:2x2
    python -m benchmarks.tpu --topology v5e:8x8 --times 16

No TPU is used. Each card has its own batch size times ``--times``, so that a chip of the second command
has as many examples as one of the first. ImageNet is trained in bfloat16; with more than its own batch
of 256, also with LARS. The file is written after every card.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from benchmarks.measure import load_card, parser, write
from sdd_jax import cards
from sdd_jax.compile_only import Report, compile_for, find_topology, outcome_values, use_one_cpu
from sdd_jax.errors import Failure
from sdd_jax.training.optimizers import optimizers


def recipes(times: int) -> Iterator[tuple[str, ConfigDict]]:
    """``(name, config)`` of every card, at ``times`` its batch size."""
    for name in cards.names():
        config = load_card(f"configs/{name}.py")
        config.batch_size *= times
        if config.dataset.name == "imagenet2012":
            config.model.dtype = "bfloat16"
        yield name, config
        if config.dataset.name == "imagenet2012" and times > 1:
            config.optimizer = ConfigDict(optimizers.options("lars"))
            yield f"{name}, LARS", config


def main() -> None:
    """Compiles, prints and writes the result file."""
    use_one_cpu()
    args = parser(__doc__, topology="v5e:2x2", times=1).parse_args()
    topology = find_topology(args.topology)
    outcomes: dict[str, Report | Failure] = {}
    for name, config in recipes(args.times):
        try:
            outcomes[name] = compile_for(config, topology)
        except Failure as error:
            outcomes[name] = error
        print(name, outcomes[name], flush=True)
        write(
            args,
            f"tpu-{args.topology.replace(':', '-')}",
            f"python -m benchmarks.tpu --topology {args.topology} --times {args.times}",
            "What the TPU compiler says of the training program of each recipe card, for one chip; no "
            "TPU was used, and operations and bytes accessed are its estimates",
            results=outcome_values(outcomes),
        )


if __name__ == "__main__":
    main()
