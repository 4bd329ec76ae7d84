"""Jobs: the same bytes in this process, over processes and over the workers of a Dask scheduler."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

from mtrouter_nb.core import jobs
from mtrouter_nb.core.jobs import CORES, SCHEDULER, JobsError, finished, one_thread, run_jobs, scheduler


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    "No scheduler unless a test names one."
    monkeypatch.delenv(SCHEDULER, raising=False)


def wait_for(seconds, value):
    time.sleep(seconds)
    return value


def fail(seconds, message):
    time.sleep(seconds)
    raise KeyError(message)


def threads():
    "What a job finds: the variable, the pools of the loaded libraries, torch, and joblib's own."
    import sklearn.linear_model  # noqa: F401  brings BLAS and OpenMP
    import torch
    pools = {pool["num_threads"] for pool in threadpool_info()}
    return os.environ["OMP_NUM_THREADS"], pools, torch.get_num_threads(), joblib.effective_n_jobs(None)


def place(seconds):
    time.sleep(seconds)
    return os.environ.get("MTROUTER_CACHE"), os.environ.get(SCHEDULER), os.getpid()


def jobs_of_its_own(seed):
    pids = run_jobs(os.getpid, [(), ()], progress=False)
    return os.getpid(), pids, run_jobs(max, [(0, seed + 1), (0, seed + 2)], progress=False)


class Travels:
    "Counts how often one of its kind arrived in this process."
    arrived = 0

    def __reduce__(self):
        return arrive, ()


def arrive():
    Travels.arrived += 1
    return Travels()


def as_it_is(value):
    return value


def written(array, number):
    array += number
    return array.sum()


def arrivals(travels, number):
    return Travels.arrived


def rolled(world, seed):
    from mtrouter_nb.multi_turn.rollout import roll
    from mtrouter_nb.multi_turn.routers import RandomRouter
    from mtrouter_nb.multi_turn.replay import OPEN
    rollout = roll(world, RandomRouter(), np.arange(len(world.tasks)), OPEN, seed)
    return [frame.to_parquet() for frame in (rollout.episodes, rollout.moves)]


def fitted(data, pool, seed):
    from mtrouter_nb.learners.outcome_network import EstimatorConfig
    from mtrouter_nb.multi_turn.estimator import OutcomeEstimator, PerModelRidge
    network = OutcomeEstimator(pool, EstimatorConfig(epochs=2, seed=seed)).fit(data)
    said = [*network.predict(data.x), *PerModelRidge(pool).fit(data).predict(data.x)]
    return [a.tobytes() for a in [*said, *(w.numpy() for w in network.network.state_dict().values())]]


def process(_): return os.getpid()


def test_a_variable_limits_the_processes(monkeypatch):
    assert os.getpid() not in run_jobs(process, [(n,) for n in range(3)], progress=False)
    monkeypatch.setenv("MTROUTER_WORKERS", "1")
    assert set(run_jobs(process, [(n,) for n in range(3)], progress=False)) == {os.getpid()}
    for wrong in ("two", "0", "-1", "1.5"):
        monkeypatch.setenv("MTROUTER_WORKERS", wrong)
        with pytest.raises(JobsError, match=f"MTROUTER_WORKERS is '{wrong}': set it to a number of processes"):
            run_jobs(process, [(1,)], progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert run_jobs(wait_for, ((s, s) for s in (0.3, 0.0, 0.1)), workers=workers, progress=False) == [0.3, 0.0, 0.1]
    assert run_jobs(wait_for, [], workers=workers) == list(finished(wait_for, [], workers)) == []


def test_finished_gives_each_result_when_it_is_there():
    order = [number for number, _ in finished(wait_for, [(1.0, "a"), (0.0, "b"), (0.0, "c")], workers=2)]
    assert order[-1] == 0 and sorted(order) == [0, 1, 2]


def test_an_early_end_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = finished(wait_for, [(0.0, 0), (5.0, 1), (5.0, 2)], workers=2)
        start = time.perf_counter()
        assert next(results) == (0, 0)
        results.close()
    assert time.perf_counter() - start < 4


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_job_is_raised_as_it_is(workers):
    run_jobs(wait_for, [(0.0, 0), (0.0, 1)], workers=workers, progress=False)  # how long workers take to start is apart
    start = time.perf_counter()
    with pytest.raises(KeyError, match="gone"):
        run_jobs(fail, [(0.0, "gone"), (5.0, "late"), (5.0, "late")], workers=workers, progress=False)
    assert time.perf_counter() - start < 4


def test_one_worker_or_one_job_stays_in_this_process():
    here = (os.environ.get("MTROUTER_CACHE"), None, os.getpid())
    assert run_jobs(place, [(0,), (0,)], workers=1, progress=False) == [here, here]
    assert run_jobs(place, [(0,)], workers=2, progress=False) == [here]
    assert here not in run_jobs(place, [(0,), (0,)], workers=2, progress=False)


def test_large_arrays_can_be_written_by_workers_and_stay_the_callers():
    zeros = np.zeros(1_000_000)
    assert run_jobs(written, [(zeros, 1), (zeros, 2)], progress=False) == [1e6, 2e6] and not zeros.any()


def test_a_worker_spreads_nothing_further():
    found = run_jobs(jobs_of_its_own, [(1,), (2,)], progress=False)
    assert [sums for *_, sums in found] == [[2, 3], [3, 4]]
    assert all({outer} == set(inner) != {os.getpid()} for outer, inner, _ in found)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_every_job_has_one_thread(workers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for found in run_jobs(threads, [(), ()], workers=workers, progress=False): assert found == ("1", {1}, 1, 1)
        assert torch.get_num_threads() == 3 and os.environ["OMP_NUM_THREADS"] == "3"
        with ThreadPoolExecutor(1) as other: assert other.submit(torch.get_num_threads).result() == 3
    finally: torch.set_num_threads(before)


def test_libraries_that_are_loaded_inside_have_one_thread(root):
    code = ("import sys, mtrouter_nb.core.jobs as j\n"
            "assert not {'torch', 'pandas', 'sklearn', 'distributed'} & set(sys.modules)\n"
            "with j.one_thread():\n"
            "    import torch, threadpoolctl\n"
            "    torch.ones(300, 300) @ torch.ones(300, 300)\n"
            "    print(torch.get_num_threads(), *{p['num_threads'] for p in threadpoolctl.threadpool_info()})")
    env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"OMP_NUM_THREADS": "4"}
    told = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert told.stdout.split() == ["1", "1"], told.stderr


def test_one_thread_puts_threads_back_after_a_failure():
    import torch
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    with pytest.raises(KeyError), one_thread(): raise KeyError
    assert torch.get_num_threads() == before and os.environ.get("OMP_NUM_THREADS") == variable


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C in a terminal is a signal to a process group")
@pytest.mark.parametrize("wait", [0.1, 1.5])  # while workers start, and while they work
def test_an_interrupt_ends_all_at_once(wait, root):
    code = ("import time; from mtrouter_nb.core.jobs import run_jobs; print('here', flush=True)\n"
            "run_jobs(time.sleep, [(20,)] * 4, 'naps', progress=False)")
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=root, text=True, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert caller.stdout.readline() == "here\n"
    time.sleep(wait)
    start = time.perf_counter()
    os.killpg(caller.pid, signal.SIGINT)
    _, told = caller.communicate(timeout=10)
    assert time.perf_counter() - start < 5 and told.count("Traceback") == 1
    assert told.rstrip().endswith("KeyboardInterrupt") and caller.returncode == -signal.SIGINT
    while left := [p for p in psutil.process_iter() if runs_in(caller.pid, p)]:  # Python's own tracker takes a moment
        assert time.perf_counter() - start < 10, left


def runs_in(group, process):
    try: return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess): return False


BESIDE = """
import sys, time
from mtrouter_nb.core.jobs import run_jobs
def job(seconds):
    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()
def outer(seconds): return run_jobs(job, [(seconds,)] * 2, progress=False)[0]
if __name__ == "__main__":
    for begun, ended in run_jobs(outer if sys.argv[1] == "nested" else job, [(.4,)] * 5, progress=False):
        print(begun, ended)
"""


@pytest.mark.parametrize("kind", ["plain", "nested"])
def test_programs_beside_each_other_take_turns(tmp_path, kind):
    "Two programs of two workers each, on one core: never two jobs at once."
    script = tmp_path / "beside.py"
    script.write_text(BESIDE)
    env = os.environ | {CORES: str(tmp_path / "cores"), "PYTHONPATH": os.pathsep.join(sys.path),
                        "LOKY_MAX_CPU_COUNT": "1"}
    both = [subprocess.Popen([sys.executable, str(script), kind], env=env, stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    spans = [tuple(map(float, line.split())) for p in both for line in p.communicate(timeout=120)[0].splitlines()]
    assert len(spans) == 10 and not any(p.returncode for p in both)
    at_once = max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans)
    assert at_once == 1


def test_a_killed_worker_gives_its_turn_back(tmp_path):
    held = jobs.FileLock(tmp_path / "core-0.lock")
    code = (f"import time; from filelock import FileLock; lock = FileLock({held.lock_file!r}); lock.acquire(); "
            "print(1, flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(jobs.Timeout): held.acquire(timeout=0)
    child.kill()
    child.wait()
    assert jobs._free([held]) is held


def test_the_variable_is_put_back():
    with scheduler("tcp://a:1"):
        with pytest.raises(KeyError), scheduler(None):
            assert SCHEDULER not in os.environ
            raise KeyError
        assert os.environ[SCHEDULER] == "tcp://a:1"
    assert SCHEDULER not in os.environ


def test_no_jobs_ask_no_scheduler():
    with scheduler("tcp://127.0.0.1:1"): assert run_jobs(wait_for, []) == []


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with scheduler("tcp://127.0.0.1:1"), pytest.raises(JobsError, match=r"pip install 'mtrouter_nb\[dask\]'"):
        run_jobs(wait_for, [(0, 0)], progress=False)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def distributed():
    return pytest.importorskip("distributed")


def test_a_scheduler_that_does_not_answer_is_named(distributed, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)
    with scheduler(f"tcp://127.0.0.1:{free_port()}"), pytest.raises(JobsError, match="No Dask scheduler answers"):
        run_jobs(wait_for, [(0, 0)], progress=False)


def test_what_is_no_scheduler_is_named(distributed, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with scheduler(address), pytest.raises(JobsError, match=f"answers at {address} within 0.3 seconds"):
            run_jobs(wait_for, [(0, 0)], progress=False)


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:nonsense", "other://127.0.0.1:8786"])
def test_what_is_no_address_is_named(address, distributed):
    with scheduler(address), pytest.raises(JobsError, match=f"{address}, which is no scheduler's address"):
        run_jobs(wait_for, [(0, 0)], progress=False)


@pytest.fixture
def cluster(distributed):
    "A scheduler in this process, without workers."
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None,
                                  protocol="tcp://", host="127.0.0.1") as cluster:
        with scheduler(cluster.scheduler_address): yield cluster
        jobs._CLIENTS.pop(cluster.scheduler_address).close()


def test_a_scheduler_without_workers_is_named(cluster, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)
    with pytest.raises(JobsError, match="no worker after 0.3 seconds"): run_jobs(wait_for, [(0, 0)], progress=False)


@pytest.mark.long
def test_a_single_worker_does_the_work(cluster):
    cluster.scale(1)
    assert run_jobs(worker_address, [(), ()], progress=False) == [cluster.workers[0].address] * 2


def worker_address():
    from distributed import get_worker
    return get_worker().address


def test_a_worker_that_would_give_other_bytes_is_refused(distributed, monkeypatch):
    worker = SimpleNamespace(address="tcp://there:1", state=SimpleNamespace(nthreads=1))
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    ours = jobs._floor()
    assert jobs._remote(ours, 3, max, (1, 2)) == (3, 2)
    code = ours.splitlines()[-1]
    with pytest.raises(JobsError, match=f"tcp://there:1 has {code} where the caller has mtrouter_nb 0: install"):
        jobs._remote(ours.replace(code, "mtrouter_nb 0"), 3, max, (1, 2))
    worker.state.nthreads = 2
    with pytest.raises(JobsError, match="--nthreads 1"): jobs._remote(ours, 3, max, (1, 2))


@pytest.fixture(scope="module")
def machines(root, tmp_path_factory):
    "The address of a scheduler with two workers, each with a cache of its own, as two machines have."
    pytest.importorskip("distributed")
    folder, address = tmp_path_factory.mktemp("machines"), f"tcp://127.0.0.1:{free_port()}"
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"PYTHONPATH": path}
    started = []

    def start(program, *options, **more):
        local = "--host", "127.0.0.1", "--no-dashboard"
        command = [sys.executable, "-m", f"distributed.cli.{program}", *options, *local]
        with open(folder / "log", "a") as log:
            started.append(subprocess.Popen(command, env=env | more, stdout=log, stderr=log, start_new_session=True))

    start("dask_scheduler", "--port", address.rpartition(":")[2])
    for name in ("one", "two"):
        start("dask_worker", address, "--nthreads", "1", "--local-directory", str(folder),
              MTROUTER_CACHE=str(folder / name), **{SCHEDULER: address})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ANSWER_S", 30)
        jobs._client(address).wait_for_workers(2, timeout=30)
    yield address
    jobs._CLIENTS.pop(address).close()
    for process in started: os.killpg(process.pid, signal.SIGKILL)


def die(): os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(JobsError, match="killed, maybe for want of memory"): run_jobs(die, [(), ()], progress=False)
    assert run_jobs(max, [(1, 2), (3, 4)], progress=False) == [2, 4], "the next call starts new ones"


@pytest.mark.long
def test_two_machines_share_the_work(machines):
    with scheduler(machines):
        found = run_jobs(place, [(0.2,)] * 6, workers=1, progress=False)
        assert all(result == ("1", {1}, 1, 1) for result in run_jobs(threads, [(), ()], progress=False))
    assert {Path(cache).name for cache, _, _ in found} == {"one", "two"} and len({pid for *_, pid in found}) == 2
    assert {address for _, address, _ in found} == {None}, "a job's own jobs stay with it"


@pytest.mark.long
def test_machines_give_results_in_order_as_they_end_and_raise_what_a_job_raises(machines):
    with scheduler(machines):
        assert run_jobs(wait_for, [(s, s) for s in (0.3, 0.0, 0.1)], progress=False) == [0.3, 0.0, 0.1]
        assert [number for number, _ in finished(wait_for, [(1.0, 0), (0.0, 1), (0.0, 2)])][-1] == 0
        with pytest.raises(KeyError, match="gone"): run_jobs(fail, [(0.0, "gone"), (0.5, "late")], progress=False)


def test_arguments_arrive_as_they_are(machines):
    some = [(max, 1, 2), [max, {"a": (min, 0)}], {"key": "value"}, np.arange(3), "b", None, print]
    with scheduler(machines): back = run_jobs(as_it_is, [(value,) for value in some + some], progress=False)
    assert repr(back) == repr(some + some)


def test_jobs_of_jobs_do_not_wait_for_each_other(machines):
    with scheduler(machines): found = run_jobs(jobs_of_its_own, [(n,) for n in range(4)], progress=False)
    assert [sums for *_, sums in found] == [[n + 1, n + 2] for n in range(4)]


def test_what_jobs_share_travels_once(machines):
    shared = Travels()
    with scheduler(machines): assert max(run_jobs(arrivals, [(shared, n) for n in range(8)], progress=False)) == 1


@pytest.mark.long
def test_a_rollout_and_a_fit_give_the_same_bytes_everywhere(machines, demo_world):
    from mtrouter_nb.multi_turn.estimator import training_set
    from mtrouter_nb.data.turns import expected_steps
    log, pool = demo_world.log, demo_world.pool
    data = training_set(log, pool, demo_world.encoder, expected_steps(log, log.tasks["task_id"]))
    work = [(rolled, [(demo_world, seed) for seed in (1, 2)]), (fitted, [(data, pool, seed) for seed in (1, 2)])]
    for function, some in work:
        alone, spread = (run_jobs(function, some, workers=n, progress=False) for n in (1, 2))
        with scheduler(machines): far = run_jobs(function, some, progress=False)
        assert alone[0] != alone[1], "the seed matters"
        assert alone == spread == far
