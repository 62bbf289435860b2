"""What schedulers and launchers of processes leave in the environment, and what of it must not reach a run."""

import os
from collections.abc import MutableMapping

# by these a library takes its process for one of many, another process for its first rank, or a job for its own to requeue
CLUSTER_VARIABLES = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE CROSS_RANK CROSS_SIZE LOCAL_SIZE "
    "ROLE_RANK ROLE_NAME ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT STANDALONE_PORT KUBERNETES_PORT MPI_LOCALRANKID "
    "MPI_LOCALNRANKS LSB_JOBID LSB_DJOB_RANKFILE LSB_MCPU_HOSTS LSB_HOSTS".split()
)
CLUSTER_VARIABLE_PREFIXES = (
    *("SLURM_", "TORCHELASTIC_", "ACCELERATE_", "OMPI_", "PMI_", "PMIX_", "MV2_COMM_", "JSM_NAMESPACE_", "PALS_", "FLUX_"),
    *("TPU_", "XRT_", "PJRT_", "PBS_"),
    *("PL_", "LT_"),  # Lightning's own: PL_TRAINER_MAX_STEPS=3 would change every training
)
removed_variables: dict[str, str] = {}  # from this process's environment: by them a training on several nodes finds itself
RETAINED_CLUSTER_VARIABLES = ("SLURM_CONF",)  # where SLURM's commands find their cluster


def remove_cluster_variables(environment: "MutableMapping[str, str]" = os.environ) -> None:
    """Takes these variables out: inside an allocation or under torchrun, a run on this machine is as it is without them."""
    for name in [
        n
        for n in environment
        if n not in RETAINED_CLUSTER_VARIABLES and (n in CLUSTER_VARIABLES or n.startswith(CLUSTER_VARIABLE_PREFIXES))
    ]:
        value = environment.pop(name)
        if environment is os.environ:
            removed_variables[name] = value
