"""Write a job's evaluate split to a .npz that needs no paretune to read.

python examples/save_split.py examples/cifar10_resnet20.yaml evaluate.npz
"""

import sys

import numpy as np
import torch

import paretune

task = paretune.load_task(sys.argv[1])
inputs, targets = zip(*task.evaluate.batches(500), strict=True)
np.savez(sys.argv[2], inputs=torch.cat(inputs).numpy(), targets=torch.cat(targets).numpy())
print(f"{sys.argv[2]}: {len(task.evaluate)} examples of {task.name}")
