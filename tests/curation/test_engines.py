"""Engines call a function for each shard; an array of jobs covers all shards, each once."""

import pytest

from xgen_jax.curation.engines import Array, Inline, make_engine
from xgen_jax.curation.store import SourceShard
from xgen_jax.errors import UserError

SHARDS = [SourceShard(number, ()) for number in (0, 2, 3, 7, 8, 9)]


def number_of(shard, more):
    return shard.number + more


def test_inline_calls_each_in_order():
    done = list(Inline().map(number_of, SHARDS, 10))
    assert done == [(shard, shard.number + 10) for shard in SHARDS]


@pytest.mark.parametrize("count", [1, 2, 4, 11])
def test_jobs_of_an_array_share_the_shards(count):
    jobs = [Array(index, count) for index in range(count)]
    done = [shard for job in jobs for shard, _ in job.map(number_of, SHARDS, 0)]
    assert sorted(done, key=lambda shard: shard.number) == SHARDS
    assert all(job.alone == (count == 1) for job in jobs)


def test_jobs_share_what_all_may_spend():
    assert Inline().share(5) == 5
    assert [Array(index, 8).share(5) for index in range(8)] == [1] * 5 + [0] * 3
    assert sum(Array(index, 3).share(1000) for index in range(3)) == 1000


@pytest.mark.parametrize(
    ("variables", "index", "count"),
    [
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, 2, 4),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "5",
            },
            *(2, 4),
        ),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "9"}, 0, 9),
    ],
)
def test_a_job_knows_its_place_from_the_scheduler(monkeypatch, variables, index, count):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    job = make_engine("array", None, None, None)
    assert isinstance(job, Array)
    assert (job.index, job.jobs) == (index, count)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("rey", None, None, None), "did you mean 'ray'"),
        (("array", None, None, None), "needs --task_index"),
        (("array", 1, None, None), "both"),
        (("array", 4, 4, None), r"in 0 \.\. 3"),
        (("inline", 0, 2, None), "are for --engine=array"),
        (("inline", None, None, "auto"), "is for --engine=ray"),
    ],
)
def test_wrong_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        make_engine(*given)
