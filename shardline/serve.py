"""`shardline serve`: serves until a signal, and shows what happens."""

from shardline import exits
from shardline.progress import lines
from shardline.serving import ServeSettings, serving
from shardline.signals import Forced, StopAsked, StopSignals


def run(settings: ServeSettings) -> int:
    say = lines()
    with StopSignals().installed() as stop:
        try:
            with serving(settings, stop, say) as cluster:
                cluster.wait_until_ready()
                ctrl_c = "ends; the controller and the workers run on" if settings.leave_running else "drains and ends"
                say(f"ready: {cluster.address} (Ctrl-C {ctrl_c})")
                cluster.keep()
        except StopAsked:
            pass
        except Forced:
            say("forced: what was in flight is lost")
            return exits.FORCED
    if settings.leave_running:
        say(f"what runs on the cluster runs on; `shardline stop --state-dir {settings.state_dir}` ends it; bye")
    else:
        say("drained; bye")
    return exits.OK
