"""What runs beside a merge changes nothing in it: work is done in order, and no failure is lost."""

import time

import pytest

from ftkit.export.beside import Beside
from ftkit.export.tensors import Header, Shards, read_headers


def test_one_piece_of_work_at_a_time_and_in_order():
    done, running = [], []

    def work(number):
        running.append(number)
        time.sleep(0.005)
        assert running == [number]
        done.append(running.pop())

    with Beside() as beside:
        for number in range(20):
            beside.run(lambda number=number: work(number))
    assert done == [*range(20)]


def fails():
    raise OSError("the disk is gone")


def go_on(beside):
    beside.run(lambda: None)


@pytest.mark.parametrize("later", [go_on, Beside.wait, lambda _: None], ids=["run", "wait", "leave"])
def test_what_fails_is_raised_where_the_work_is_waited_for(later):
    def work():
        with Beside() as beside:
            beside.run(fails)
            later(beside)

    with pytest.raises(OSError, match="the disk is gone"):
        work()


def test_an_error_of_the_caller_is_not_hidden_by_one_beside_it():
    def work():
        with Beside() as beside:
            beside.run(fails)
            raise ValueError("the caller's")

    with pytest.raises(ValueError, match="the caller's"):
        work()


def test_a_block_that_was_read_is_there_until_the_one_after_the_next(tmp_path):
    with Shards(tmp_path, [Header("weight", "U8", (7, 4))], 2**40) as shards:
        shards.write("weight", [bytes(range(28))])
    (stored,) = read_headers(tmp_path / "model.safetensors")
    before = None
    for number, block in enumerate(stored.blocks(4)):
        assert bytes(block) == bytes(range(4 * number, 4 * number + 4))
        assert before is None or bytes(before) == bytes(range(4 * number - 4, 4 * number))
        before = block
