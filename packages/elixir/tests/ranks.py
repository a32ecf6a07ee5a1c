"""Starts gloo ranks on this machine."""

import importlib
import multiprocessing
import socket
import traceback

# forkserver: the children share one import of torch
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "elixir"])


def launch(cases, world, folder, timeout=150, dead=()):
    """Run functions of a test module on ``world`` processes; return what the first printed.

    ``cases`` is ``"module:name,name"``; each ``case_name(rank, world, folder)`` may return a list;
    ``name@100`` passes it a number as well.
    Nothing is awaited from the ranks in ``dead``.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = CONTEXT.Queue()
    children = [
        CONTEXT.Process(target=main, args=(cases, rank, world, port, str(folder), queue))
        for rank in range(world)
    ]
    for c in children:
        c.start()
    try:
        outs = dict(queue.get(timeout=timeout) for _ in range(world - len(dead)))
    finally:
        for c in children:
            c.join(10)
            c.kill()
    assert all(isinstance(out, list) for out in outs.values()), "\n".join(map(str, outs.values()))
    return outs[0]


def main(cases, rank, world, port, folder, queue):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": world}
    try:
        dist.init_process_group("gloo", **store)
        out = []
        module, names = cases.split(":")
        for name in names.split(","):
            name, _, number = name.partition("@")
            case = getattr(importlib.import_module(module), f"case_{name}")
            out += case(rank, world, folder, *([int(number)] if number else [])) or []
        dist.barrier()
        dist.destroy_process_group()
        queue.put((rank, out))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise
