"""Lock, Queue, Value, Array, Event, Semaphore and SimpleQueue reach the workers through initargs."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import sys

from pairpool import get_context

shared = {}


def prepare(lock, queue, simple, value, array, event, semaphore):
    shared.update(lock=lock, queue=queue, simple=simple, value=value, array=array, event=event)
    shared.update(semaphore=semaphore)


def work(item):
    shared["event"].wait()
    with shared["semaphore"], shared["lock"]:
        shared["value"].value += item
        shared["array"][item % 2] += 1
    shared["queue"].put(item)
    shared["simple"].put(item)
    return item


def main():
    context = get_context(sys.argv[1])
    queue, event = context.Queue(), context.Event()
    simple, value, array = context.SimpleQueue(), context.Value("i", 0), context.Array("i", [0, 0])
    initargs = (context.Lock(), queue, simple, value, array, event, context.Semaphore(2))
    with context.Pool(2, prepare, initargs) as pool:
        result = pool.map_async(work, range(20))
        assert not result.ready()
        event.set()
        assert result.get() == list(range(20))
        assert sorted(queue.get() for _ in range(20)) == list(range(20))
        assert sorted(simple.get() for _ in range(20)) == list(range(20))
        assert value.value == sum(range(20))
        assert list(array) == [10, 10]
    pool.join()
    queue.close()
    queue.join_thread()


if __name__ == "__main__":
    main()
    print("done")
