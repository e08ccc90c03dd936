"""Many studies of one workspace: every method, seed and division of the patients, one after the other or several at a time.

    from vfmgl_lib.tools.sweep import run_sweep, sweep_status

    studies = run_sweep(workspace, ["fedavg", "vfmgl"], seeds=[0, 1, 2], processes=2)
    sweep_status(workspace, ["fedavg", "vfmgl"], seeds=[0, 1, 2])

`vfmgl sweep --help` is the same from a terminal. A package and not a file because what is left (`jobs`), what runs it
(`run`), the small log that is committed (`log`) and the choice of rates (`tuning`) are read apart.
"""

from vfmgl_lib.tools.sweep.jobs import Job, plan, sweep_status
from vfmgl_lib.tools.sweep.run import SweepError, run_sweep

__all__ = ["Job", "SweepError", "plan", "run_sweep", "sweep_status"]
