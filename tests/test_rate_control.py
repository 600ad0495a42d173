import math

import pytest

from egret.errors import EgretError
from egret.rate_control import RateController


def test_schedule_waits_falls_by_equal_factors_and_then_stays() -> None:
    controller = RateController(0.5, 1000)
    assert (controller.first, controller.hold) == (201, 701)
    assert controller.scheduled(201) == 0.5
    assert controller.update(8.0, 201) == 1.0
    assert controller.scheduled(201) == 8.0
    assert controller.scheduled(326) == pytest.approx(2.0)
    assert controller.scheduled(451) == pytest.approx(0.5)
    for step in (700, 800, 1000, 2000):
        assert controller.scheduled(step) == pytest.approx(0.5)
    assert controller.falls(450)
    assert not controller.falls(451)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_trainings_have_steps_that_pull(steps: int) -> None:
    controller = RateController(1.0, steps)
    assert 1 <= controller.first <= steps
    assert controller.first < controller.hold


def test_start_below_the_target_is_not_raised_at_once() -> None:
    controller = RateController(4.0, 100)
    assert controller.update(3.0, 0) < 1
    assert controller.scheduled(0) == controller.scheduled(50) == 4.0


@pytest.mark.parametrize("target", [0.1, 0.6, 4.0])
@pytest.mark.parametrize("sensitivity", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("every", [1, 10])
def test_bits_reach_the_target_whatever_lambda_that_takes(
    target: float, sensitivity: float, every: int
) -> None:
    # A stand-in for a training: log bits go to their place for λ as the weights have time to move.
    steps, lag = 2000, 60.0
    controller = RateController(target, steps)
    bits, lam = 6.0, 1.0
    reached = []
    for step in range(steps):
        settled = math.log(6.5) - math.log1p(lam * sensitivity)
        bits *= math.exp((settled - math.log(bits)) / lag)
        if step % every == 0:
            lam *= controller.update(bits, step)
        if step > 0.9 * steps:
            reached.append(bits)
    assert max(abs(bits / target - 1) for bits in reached) < 0.05


def test_lambda_rises_and_falls_with_the_bits_and_by_a_limited_factor() -> None:
    def second(bits: float) -> float:
        controller = RateController(1.0, 100)
        controller.update(1.0, 60)
        return controller.update(bits, 60)

    assert 1 / math.e <= second(0.0) <= second(0.9) < 1 < second(1.1) < second(2.5) <= math.e
    assert second(0.0) == pytest.approx(1 / math.e)
    assert second(2.5) == pytest.approx(math.e)


def test_short_training_has_no_larger_gains_than_one_of_80_steps() -> None:
    # The proportional part is the same at the same error: what is left is the sum's.
    def later(steps: int) -> float:
        controller = RateController(1.0, steps)
        controller.update(1.05, steps - 1)
        return controller.update(1.05, steps)

    short, at_limit, longer, twice = (math.log(later(steps)) for steps in (20, 80, 100, 200))
    assert short == pytest.approx(at_limit)
    assert longer == pytest.approx(at_limit * 0.8)
    assert twice == pytest.approx(longer / 2)


def test_bits_are_missed_once_little_pull_is_left_for_a_while() -> None:
    controller = RateController(2.0, 1000)
    controller.update(4.0, 201)
    pull = largest = controller.update(4.0, 460)
    step = idle = 460
    while step < 700:
        step += 5
        pull *= controller.update(1.5, step)
        largest = max(largest, pull)
        if pull > 0.01 * largest:
            idle = step
        assert controller.misses(1.6) == (step - idle > 100)
        # Risen by more than a tenth, on their way back.
        assert not controller.misses(1.66)
    assert controller.misses(1.6)
    again = RateController(2.0, 1000)
    again.load_state_dict(controller.state_dict())
    assert again.misses(1.6)
    controller.wait()
    assert not controller.misses(0.1)
    # Pulling again.
    for _ in range(40):
        step += 5
        again.update(8.0, step)
    assert not again.misses(0.1)


def test_bits_near_the_target_are_not_missed() -> None:
    controller = RateController(2.0, 1000)
    controller.update(4.0, 201)
    for step in range(460, 700, 5):
        controller.update(1.69, step)
    assert controller.misses(1.69)
    assert not controller.misses(1.71)


def test_what_is_not_a_number_changes_nothing() -> None:
    controller, other = RateController(1.0, 100), RateController(1.0, 100)
    for bits, step in ((5.0, 0), (math.nan, 10), (math.inf, 11), (4.0, 20)):
        factor = controller.update(bits, step)
        expected = other.update(bits, step) if math.isfinite(bits) else 1.0
        assert factor == expected


def test_another_controller_goes_on_from_a_state() -> None:
    measured = [(6.0, 0), (5.5, 10), (4.0, 20), (3.7, 30), (1.0, 80), (0.9, 99)]
    controller, whole = RateController(1.0, 100), RateController(1.0, 100)
    factors = [whole.update(*pair) for pair in measured]
    found = [controller.update(*pair) for pair in measured[:3]]
    resumed = RateController(1.0, 100)
    resumed.load_state_dict(controller.state_dict())
    assert found + [resumed.update(*pair) for pair in measured[3:]] == factors


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_bad_target_is_named(target: float) -> None:
    with pytest.raises(EgretError, match=rf"target: found {target}, expected"):
        RateController(target, 10)


def test_bad_number_of_steps_is_named() -> None:
    with pytest.raises(EgretError, match="steps: found 0, expected a whole number of 1 or more"):
        RateController(1.0, 0)


def test_it_brakes_far_below_the_schedule_and_no_longer_than_that() -> None:
    controller = RateController(1.0, 1000)
    assert not controller.brakes
    for bits, brakes in ((4.0, False), (3.0, False), (0.1, True), (0.0, True), (2.0, False)):
        controller.update(bits, 250)
        assert controller.brakes is brakes, bits
    controller.update(0.1, 260)
    again = RateController(1.0, 1000)
    again.load_state_dict(controller.state_dict())
    assert again.brakes
