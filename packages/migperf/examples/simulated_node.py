"""Cut a simulated DGX A100 beside a running job, and put everything back."""

import os

from migperf import InstanceInUse, Node

with Node.open(sim="dgx-a100-80gb") as node:
    gpu = node.gpus[0]
    gpu.apply("4g.40gb, 3g.40gb")
    job = gpu.instances()[0]
    node.sim.occupy(0, os.getpid(), gpu_instance=job.id, compute_instance=0, memory_mib=1000)
    print(gpu.plan("4g.40gb, 1g.10gb*3"))
    with gpu.apply("4g.40gb, 1g.10gb*3") as mig:
        print([device.name for device in mig.devices])
    try:
        gpu.apply("7g.80gb")
    except InstanceInUse as error:
        print(error)
    print(gpu)
