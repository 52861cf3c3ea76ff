"""Many rows answered in parts that survive a kill: a file, a folder or an S3 prefix in, a folder of parts out. Trains nothing.

A part is answered, written under a temporary name, renamed, and then noted in a journal with the place in the source where the
next one starts. So a run that was cut off goes on behind the last note, and the same source and bundle give the same parts.
"""

from esteira.batch.course import Job, Stopped, Summary, run
from esteira.batch.journal import Begun, begun
from esteira.batch.windows import WINDOW_ROWS, WINDOW_SECONDS, projected

__all__ = ["WINDOW_ROWS", "WINDOW_SECONDS", "Begun", "Job", "Stopped", "Summary", "begun", "projected", "run"]
