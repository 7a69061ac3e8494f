# Lines that slurm/train.sbatch and slurm/ray.sbatch read before anything runs. Copy this, change it, and
# give it with `distillery ... --on slurm --environment FILE`, or DISTILLERY_ENVIRONMENT=FILE by hand.
# shellcheck shell=bash disable=SC2034

# Modules and an environment:
# module load cuda/12.8
# source /shared/venvs/distillery/bin/activate
# DISTILLERY_PYTHON=python

# A container (Pyxis), whose own Python runs:
# SRUN_OPTIONS+=(--container-image=/shared/images/distillery.sqsh --container-mounts=/shared:/shared)
# SRUN_OPTIONS+=(--container-workdir="$PWD")
# With slurm/ray.sbatch /tmp:/tmp among the mounts: its steps, each in a container, meet by files there.
# DISTILLERY_PYTHON=python3

# Processes bound to CPUs in another way than by the threads' own choice:
# SRUN_OPTIONS+=(--cpu-bind=cores)

# A network interface other than the one by which the nodes reach each other:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
