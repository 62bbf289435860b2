"""Commands of the tests are forked from a server: a test that starts them from nothing takes ten seconds more."""

import subprocess
import sys

from helpers.warm_processes import WarmPopen


def test_a_command_is_forked_also_after_something_was_compiled() -> None:
    """torch names its cache of compiled code in the environment, which the command inherits."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir()
    with subprocess.Popen([sys.executable, "-m", "distill_lit", "--help"], stdout=subprocess.PIPE) as process:
        assert isinstance(process, WarmPopen)
        assert process._status is not None
        assert b"usage" in process.communicate()[0].lower()
    assert process.returncode == 0
