"""Training by several processes on one machine, as a launcher starts them.

``python training_ranks.py JOBS`` is one of the processes: it has in its environment what a launcher puts there, and
does the jobs of a JSON file one after another.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

JOB = {"stage": "sembo", "sharded": False, "kill_at": None}
PROCESSES = 2


def run_jobs(folder, jobs):
    """Do ``jobs`` (see :data:`JOB`; ``data``, ``output``, ``config``) in two processes; per job, the (exit code, what
    was said) of each in the order of ranks. With ``kill_at`` the last process kills itself in the middle of that step,
    and does no job after."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([{**JOB, "port": _free_port(), **job} for job in jobs]))
    paths = f"{Path(__file__).parent}:{Path(__file__).parent / 'training' / 'engine'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1"}
    environment |= {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES)}
    started = []
    for rank in range(PROCESSES):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, __file__, str(folder / "jobs.json")]
        with (folder / f"said-{rank}").open("w") as said:
            started.append(subprocess.Popen(command, env=own, stdout=said, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
    results = []
    for rank, code in enumerate(codes):
        file = folder / f"results-{rank}.json"
        done = json.loads(file.read_text()) if file.exists() else []
        missing = len(jobs) - len(done)
        results.append(done + [(code, (folder / f"said-{rank}").read_text())] * missing)
    return [list(pair) for pair in zip(*results, strict=True)]


def _train(job, rank):
    from critic_stage import CriticStage
    from losatok_ext.training import TrainConfig
    from losatok_ext.training.run import train

    if job["sharded"]:
        _shard()
    if job["kill_at"] is not None:
        _kill_at(rank, job["kill_at"])
    stage = CriticStage if job["stage"] == "critic" else job["stage"]
    train(stage, job["data"], job["output"], TrainConfig.from_dict(job["config"]))


def _kill_at(rank, step):
    """Make the last process kill itself in the middle of ``step``."""
    from losatok_ext.training.engine.objective import Objective

    losses = Objective.losses

    def deadly(self, part, now):
        if rank == PROCESSES - 1 and now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(self, part, now)

    Objective.losses = deadly


def _shard():
    """Accelerate turns FSDP on for GPUs alone; its sharding itself works over gloo."""
    import accelerate
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    class Sharding(accelerate.Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
            self.state.distributed_type = DistributedType.FSDP

    accelerate.Accelerator = Sharding


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main(path):
    from losatok_ext.errors import UserError

    rank, results = int(os.environ["RANK"]), []
    for job in json.loads(path.read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        try:
            _train(job, rank)
            results.append((0, ""))
        except UserError as error:
            results.append((2, str(error)))
        except Exception:
            results.append((1, traceback.format_exc()))
        (path.parent / f"results-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
