"""Components that end as they are told, in the image of the steps."""

from kfp import dsl

from tests.containers.engine import image


@dsl.component(base_image=image("pipeline"), install_kfp_package=False)
def ends_with(code: int, seconds: int = 0) -> str:
    import os
    import sys
    import time

    print(f"who {os.getuid()}", flush=True)
    time.sleep(seconds)
    if code:
        sys.exit(code)
    return "ended"


@dsl.component(base_image="localhost/esteira-nowhere:0", install_kfp_package=False)
def nowhere() -> None:
    pass
