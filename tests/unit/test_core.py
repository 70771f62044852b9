"""The server core's story: sequences of Asks from one or three ranks, and what it tells them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from scripted import DT, FIELDS, SETTINGS, SWITCH, Host, N, ScriptedTask, backtests, make_core, turned

from ml_servers.budget import BURST, LOOKS
from ml_servers.core import Sampled, Send
from ml_servers.facts import summary
from ml_servers.settings import CoreSettings
from schemas.messages import VERSION, Ack, Action, Advice, Bye, Hello, Refusal, Welcome


def hosted(ranks: int = 1, settings: CoreSettings = SETTINGS, **host: object) -> tuple[Host, ScriptedTask]:
    """A Host whose core serves a perfect model from the start."""
    task = ScriptedTask(version=1)
    host_ = Host(make_core(task, settings), ranks, **host)  # type: ignore[arg-type]
    host_.core.trained("task", 1, "scripted", 10, backtests())
    return host_, task


def until_learned(host: Host) -> None:
    for _ in range(60):
        if host.run(1)[0].startswith("learned"):
            return
    raise AssertionError(host.story)


def exact(host: Host) -> bool:
    """Whether the host's state is what direct integration from the start gives."""
    start = Host(make_core(ScriptedTask())).sim
    x, v = turned(start.x, start.v, host.sim.step)
    return bool(np.allclose(host.sim.x, x, atol=1e-9) and np.allclose(host.sim.v, v, atol=1e-9))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_perfect_model_is_tried_taken_and_audited_at_doubling_distance(ranks: int) -> None:
    host, _ = hosted(ranks)
    story = host.run(26)
    # A live forecast of 5 steps closes every 5 steps; two good ones and the model takes over, 5 steps, then 10, 20.
    assert story[:11] == ["trial"] * 10 + ["learned 5"]
    assert story[11:19] == ["audit", "learned 10", "audit", "learned 20", "audit", "learned 40", "audit", "learned 40"]
    assert exact(host) and host.sim.time == pytest.approx(host.sim.step * DT)
    assert host.core.arbiter is not None and max(host.core.arbiter.step_errors) < 1e-12


def test_only_directly_integrated_states_train() -> None:
    host, _ = hosted()
    host.run(20)
    steps = [step for step, trains in host.samples if trains]
    assert steps == sorted(set(steps)) and not set(steps) & set(host.sim.adopted)
    assert host.core.admitted == len(steps) == summary(host.core)["samples"]["admitted"]


def test_untrained_says_direct() -> None:
    task = ScriptedTask()
    host = Host(make_core(task))
    assert (
        host.run(5) == ["direct"] * 5 and host.core.arbiter and host.core.arbiter.state.reason == "nothing learned yet"
    )


@pytest.mark.parametrize("mood", ["off", "nan", "silent"])
def test_a_model_that_is_wrong_from_the_start_never_takes_over(mood: str) -> None:
    host, task = hosted()
    task.mood = mood
    assert not any(word.startswith(("learned", "rewind")) for word in host.run(60))
    assert exact(host)


@pytest.mark.parametrize(("mood", "says"), [("raises", "RuntimeError"), ("shapeless", "shape"), ("short", "asked for")])
def test_a_broken_plug_in_is_put_out_of_use_with_its_cause(mood: str, says: str) -> None:
    host, task = hosted()
    until_learned(host)
    task.mood = mood
    story = host.run(10)
    # The host had stood at a learned state that can no longer be audited: it is taken back.
    assert story[0] == "audit" and story[1].startswith("rewind") and set(story[2:]) == {"direct"} and exact(host)
    assert says in host.core.failures["task"] and says in str(host.exchange().reason)  # type: ignore[union-attr]


def test_a_failed_audit_rewinds_to_the_last_verified_state() -> None:
    host, task = hosted()
    assert host.run(17)[-1] == "learned 40"
    verified = max(host.saved)
    task.mood = "off"  # from here on every forecast is 0.5 off, also the one that judges the audit
    assert host.run(2) == ["audit", "rewind -41"]
    assert host.sim.step == verified and exact(host)
    assert host.core.arbiter is not None and host.core.arbiter.state.rewinds == 1
    assert not any(word.startswith("learned") for word in host.run(8))


def test_a_change_of_the_dynamics_is_found_by_the_next_audit() -> None:
    host, _ = hosted()
    until_learned(host)
    host.sim.noise = 0.2
    assert [word.split()[0] for word in host.run(2)] == ["audit", "rewind"]


def test_without_saved_states_a_failed_audit_says_so() -> None:
    host, _ = hosted(can_rewind=False)
    until_learned(host)
    host.sim.noise = 0.2
    host.run(1)
    advice = host.exchange()
    assert advice is not None and advice.action is Action.DIRECT and "unverified" in advice.reason


def test_messages_from_the_branch_that_was_left_are_told_the_rewind_again() -> None:
    host, _ = hosted()
    until_learned(host)
    host.sim.noise = 0.2
    host.run(1)
    told = host.exchange()
    assert told is not None and told.action is Action.REWIND
    for _ in range(3):  # the host has not had it yet and goes on
        host.sim.integrate(DT, 1)
        again = host.exchange()
        assert again is not None and (again.action, again.decision) == (Action.REWIND, told.decision)
    decisions = host.core._decision
    host.follow(told)
    host.sim.noise = 0.0
    host.sim.integrate(DT, 30)  # no credit for a while: the first Ask of the new branch is past the old one
    after = host.exchange()
    assert after is not None and after.action is Action.DIRECT and after.decision == decisions + 1


def test_a_refused_rewind_lets_the_run_go_on() -> None:
    host, _ = hosted()
    until_learned(host)
    host.sim.noise = 0.2
    host.run(1)
    told = host.exchange()
    assert told is not None and told.action is Action.REWIND
    host.executed, host.sim.noise = told.decision, 0.0
    host.sim.integrate(DT, 1)
    after = host.exchange(refused="no state is saved")
    assert after is not None and after.action is Action.DIRECT and after.decision == told.decision + 1


def test_a_host_that_missed_the_deadline_is_audited_all_the_same() -> None:
    host, _ = hosted()
    until_learned(host)
    missed = host.exchange()  # the answer comes too late: the host integrates
    assert missed is not None and missed.action is Action.DIRECT
    host.follow(None)
    host.sim.x = host.sim.x + 0.3  # the learned state was wrong
    advice = host.exchange(refused="no answer within the deadline")
    assert advice is not None and advice.action is Action.REWIND


def test_an_adopted_state_whose_ask_never_arrived_is_audited() -> None:
    host, _ = hosted()
    until_learned(host)
    host.follow(None)  # no credit at the learned state: nothing was sent, the host integrated
    host.sim.x = host.sim.x + 0.3
    advice = host.exchange(refused="no credit")
    assert advice is not None and advice.action is Action.REWIND and advice.step_error > 0.05
    host.follow(advice)
    assert exact(host) and not host.core.failures


def test_a_learned_state_taken_after_a_refusal_is_audited_first() -> None:
    host, _ = hosted()
    until_learned(host)
    second = host.exchange(refused="an older decision came too late")
    assert second is not None and second.action is Action.DIRECT and second.phase == "audit"
    host.follow(second)
    host.sim.x = host.sim.x + 0.3
    assert host.run(1)[0].startswith("rewind")


def test_an_unknown_learned_state_is_left_by_a_rewind() -> None:
    host, _ = hosted()
    until_learned(host)
    core = make_core(ScriptedTask(version=1))  # a server that knows nothing of the run
    host.core = core
    host.hello(0)
    core.trained("task", 1, "scripted", 10, backtests())
    advice = host.exchange()
    assert advice is not None and advice.action is Action.REWIND and "not known" in advice.reason
    assert advice.decision > host.executed  # else the host would never act on it


def test_while_a_learned_state_is_under_way_nothing_newer_is_decided() -> None:
    host, _ = hosted()
    for _ in range(40):
        advice = host.exchange()
        if advice is not None and advice.action is Action.LEARNED:
            break
        host.follow(advice)
    assert advice is not None and advice.action is Action.LEARNED
    for _ in range(advice.horizon - 1):  # it has not arrived yet
        host.sim.integrate(DT, 1)
        assert host.exchange() is None
    host.sim.integrate(DT, 1)
    assert host.exchange() is not None  # too late to adopt: decisions go on


def test_a_refusal_ends_the_waiting_for_a_learned_state() -> None:
    host, _ = hosted()
    host.run(10)
    advice = host.exchange()
    assert advice is not None and advice.action is Action.LEARNED
    host.sim.integrate(DT, 1)
    assert host.exchange() is None and host.exchange(refused="not finite") is not None


def test_a_new_process_of_the_host_must_earn_its_place_again() -> None:
    host, _ = hosted()
    host.run(10)
    advice = host.exchange()
    assert advice is not None and advice.action is Action.LEARNED
    again = Host(host.core)  # the process died and starts from the beginning
    assert again.run(3) == ["trial"] * 3


def test_horizons_stop_before_output_change_and_end() -> None:
    host, _ = hosted(last_step=120)
    host.sim.controls_until = 60 * DT
    seen = []
    while host.sim.step < 120:
        at = host.sim.step
        if at >= 60:
            host.sim.controls_until = math.inf
        until = (at // 17 + 1) * 17
        advice = host.exchange(until=min(until, 120))
        host.follow(advice)
        if advice is not None and advice.action is Action.LEARNED:
            seen.append((at, advice.step))
            assert advice.step <= until and not (at < 60 < advice.step + 1 + 1)
    assert any(at < 60 for at, _ in seen) and any(at > 60 for at, _ in seen)
    assert max(to for _, to in seen) <= 118 and 60 not in [to for _, to in seen] and exact(host)


@pytest.mark.parametrize(
    ("until_steps", "leeway"), [(10, 10), (10 - 1e-9, 10), (9.5, 9), (0, 0), (-3, -3), (math.nan, 0), (1e308, 10**6)]
)
def test_steps_to_the_next_change_are_rounded_by_a_hair_only(until_steps: float, leeway: int) -> None:
    from ml_servers.answers import surroundings
    from schemas.messages import Ask, Stamp

    for time in (0.0, 1e5 / 3):
        stamp = Stamp(0, 1, 1, 5, time, 0.1, time + until_steps * 0.1, ())
        assert surroundings({0: Ask(stamp, 20)}, 5 + 10**6).leeway == leeway
    stamp = Stamp(0, 1, 1, 5, 0.0, 0.0, 3.0, ())
    assert surroundings({0: Ask(stamp, 20)}, 100).leeway == 0  # no dt: the change may be any step


@pytest.mark.parametrize(("end_time", "leeway"), [(1.0, 10), (0.95, 9), (0.999999999, 10), (0.0, 0), (math.inf, 95)])
def test_a_step_that_the_end_cuts_short_is_none_to_judge_by(end_time: float, leeway: int) -> None:
    from ml_servers.answers import surroundings
    from schemas.messages import Ask, Stamp

    stamp = Stamp(0, 1, 1, 5, 0.0, 0.1, math.inf, ())
    assert surroundings({0: Ask(stamp, 20)}, 100, end_time).leeway == leeway


def test_a_control_out_of_range_goes_direct_at_once_and_is_audited() -> None:
    host, _ = hosted()
    until_learned(host)
    host.sim.force = 5.0
    story = host.run(6)
    assert story[0] == "audit" and set(story[1:]) == {"direct"}


def test_shadow_forecasts_and_scores_but_never_acts() -> None:
    host, _ = hosted(settings=msgspec.structs.replace(SETTINGS, act=False))
    assert set(host.run(40)) == {"trial"}
    arbiter = host.core.arbiter
    assert arbiter is not None and arbiter.calibration.checked >= 7 and arbiter.state.switches == 0


def test_blended_hand_over_then_audit_of_the_blended_state() -> None:
    switch = msgspec.structs.replace(SWITCH, blend_steps=2)
    host, _ = hosted(settings=msgspec.structs.replace(SETTINGS, switch=switch))
    until_learned(host)
    story = host.story[-1:] + host.run(6)
    assert story[:2] == ["learned 2 x0.33", "learned 2 x0.67"] and exact(host)
    assert "learned 1" in story and "audit" in story  # 5 steps in all since the verified state, then an audit
    host.sim.noise = 0.2
    assert any(word.startswith("rewind") for word in host.run(4))


def test_a_blended_state_that_never_arrived_is_taken_back() -> None:
    switch = msgspec.structs.replace(SWITCH, blend_steps=2)
    host, _ = hosted(settings=msgspec.structs.replace(SETTINGS, switch=switch))
    until_learned(host)
    host.sim.x = host.sim.x + 0.3  # the mix was wrong, and its Ask was lost
    host.follow(None)
    [story] = host.run(1)
    assert story.startswith("rewind") and exact(host)
    assert host.run(3) == ["trial", "trial", "trial"]


def test_a_blended_state_is_audited_when_the_model_is_no_longer_able() -> None:
    switch = msgspec.structs.replace(SWITCH, blend_steps=2)
    host, _ = hosted(settings=msgspec.structs.replace(SETTINGS, switch=switch))
    until_learned(host)
    host.sim.force = 5.0  # after the first blended step the model is not able any more
    assert host.run(2) == ["audit", "direct"]


def test_parts_come_in_any_order_and_incomplete_steps_are_passed_over() -> None:
    host, _ = hosted(3)
    assert host.ask(2) == [] and host.ask(0) == []
    [*sends, sampled] = host.ask(1)
    assert len(sends) == 3 and isinstance(sampled, Sampled)
    assert np.array_equal(sampled.snapshot["x"], host.sim.x)
    assert float(sampled.snapshot["invariant.energy"]) == pytest.approx(N)
    host.sim.integrate(DT, 1)
    host.ask(0)  # the others' parts are lost
    host.sim.integrate(DT, 1)
    assert host.exchange([1, 0, 2]) is not None


def test_ranks_far_apart_are_joined_within_the_credit() -> None:
    host, _ = hosted(2)
    states = []
    for _ in range(SETTINGS.credit):
        states.append(host.sim.save())
        host.ask(0)
        host.sim.integrate(DT, 1)
    answered = 0
    for state in states:
        host.sim.restore(state)
        answered += bool(host.ask(1))
    assert answered == SETTINGS.credit and summary(host.core)["samples"]["incomplete"] == 0


def test_rounds_that_never_complete_are_bounded() -> None:
    host, _ = hosted(2)
    for _ in range(50):
        host.ask(0)
        host.sim.integrate(DT, 1)
    assert len(host.core._rounds) <= SETTINGS.credit
    assert summary(host.core)["samples"]["incomplete"] == 50 - SETTINGS.credit


def test_a_rank_that_went_back_does_not_mix_branches() -> None:
    host, _ = hosted(2)
    saved = host.sim.save()
    host.sim.integrate(DT, 3)
    host.ask(0)  # step 3 of a branch that is left before rank 1 spoke
    host.sim.restore(saved)
    host.sim.noise = 1.0
    host.exchange()
    for _ in range(3):
        host.sim.integrate(DT, 1)
        if host.sim.step < 3:
            host.exchange()
    assert host.ask(1) == []  # rank 0's part of step 3 belonged to the other branch
    sampled = host.ask(0)[-1]
    assert isinstance(sampled, Sampled) and np.array_equal(sampled.snapshot["x"], host.sim.x)


def test_invariants_of_pushed_states_are_summed_over_ranks() -> None:
    host, _ = hosted(3)
    instructions = [i for rank in (1, 2, 0) for i in host.push(rank)]
    [sampled] = [i for i in instructions if isinstance(i, Sampled)]
    assert sampled.trains and float(sampled.snapshot["invariant.energy"]) == pytest.approx(N)
    assert sum(isinstance(i, Send) and isinstance(i.message, Ack) for i in instructions) == 3


def test_invariants_that_are_not_finite_stop_nobody() -> None:
    host, _ = hosted(3)
    for rank, value in ((0, math.inf), (1, -math.inf), (2, 1e308)):
        last = host.ask(rank, invariants={"energy": value})
    assert isinstance(last[-1], Sampled) and math.isnan(float(last[-1].snapshot["invariant.energy"]))


def test_a_hostile_figure_does_not_upset_the_budget() -> None:
    settings = msgspec.structs.replace(SETTINGS, overhead=1e-6)
    host = Host(make_core(ScriptedTask(), settings))
    for _ in range(100):
        advice = host.exchange(stall_s=math.inf, direct_step_s=math.nan)
        host.follow(advice)
    assert math.isfinite(host.core.budget.spent_s)


def test_the_server_is_charged_for_every_ranks_message_and_for_its_start() -> None:
    host = Host(make_core(ScriptedTask()), ranks=3, cpu_s=0.25)
    for steps in (1, 2):
        host.follow(host.exchange())
        assert host.core.budget.spent_s == pytest.approx(0.25 * 3 * (1 + steps))


def test_leases_when_the_budget_is_spent() -> None:
    settings = msgspec.structs.replace(SETTINGS, overhead=0.01)
    host = Host(make_core(ScriptedTask(), settings))
    leases, reasons = [], []
    for _ in range(BURST + 6):
        advice = host.exchange(stall_s=1.0)
        assert advice is not None
        leases.append(advice.lease)
        reasons.append(advice.reason)
        host.follow(advice)
    assert "budget" not in reasons[0] and any(reason.startswith("the budget is spent; ") for reason in reasons)
    assert all(("budget" in reason) == (lease >= BURST) for reason, lease in zip(reasons, leases, strict=True))
    looks, leases = leases[: len(LOOKS)], leases[len(LOOKS) :]
    burst = BURST - len(LOOKS) - 1
    assert looks == [1000 // 64] * len(LOOKS) and leases[:burst] == [1] * burst and max(leases) > BURST


def test_a_rank_that_had_heard_nothing_for_a_while_goes_on_where_it_was() -> None:
    host = Host(make_core(ScriptedTask()), ranks=2)
    host.run(3)
    assert host.ask(0) == []  # its part is kept until the other rank's comes
    again = msgspec.structs.replace(host.greeting(1), epoch=host.epoch[1], seq=host.seq[1] + 2)
    sends = [i for i in host.core.handle(b"rank-1", again, {}) if isinstance(i, Send)]
    welcome, ack = (send.message for send in sends)
    assert isinstance(welcome, Welcome) and welcome.epoch == host.epoch[1]
    assert isinstance(ack, Ack) and ack.lost == (host.seq[1] + 1, host.seq[1] + 2)
    host.seq[1] += 2
    answers = [i.message for i in host.ask(1) if isinstance(i, Send)]
    assert [type(message) for message in answers] == [Advice, Advice]


def test_hello_again_starts_anew_and_old_messages_are_fenced() -> None:
    host, _ = hosted(2)
    host.run(3)
    old = list(host.epoch)
    welcome = host.hello(0, step=3)
    assert isinstance(welcome, Welcome) and welcome.epoch > max(old)
    host.epoch[0], new = old[0], host.epoch[0]
    assert host.ask(0) == []
    host.epoch[0], host.seq[0] = new, 0
    host.ask(1)
    assert host.ask(0) != []


def test_goodbye_of_every_rank_ends_the_run_and_a_strangers_does_not() -> None:
    host, _ = hosted(2)
    core = host.core
    assert core.handle(b"stranger", Bye(0, host.epoch[0], 3, "finished"), {}) == [] and not core.all_finished
    core.handle(b"rank-0", Bye(0, host.epoch[0], 3, "finished"), {})
    assert not core.all_finished
    core.handle(b"rank-1", Bye(1, host.epoch[1], 3, "finished"), {})
    assert core.all_finished
    host.hello(1)
    assert not core.all_finished  # it came back


def test_a_run_whose_ranks_were_all_refused_is_over_when_they_have_left() -> None:
    host = Host(make_core(ScriptedTask()), 0)
    bad = (msgspec.structs.replace(FIELDS[0], dtype="<f2"),)
    for rank in (0, 1):
        [send] = host.core.handle(b"rank-%d" % rank, Hello(VERSION, "r", rank, 2, bad, {}, 0, 10, True), {})
        assert isinstance(send, Send) and isinstance(send.message, Refusal)
    for rank in (0, 1):
        assert not host.core.all_finished
        assert host.core.handle(b"rank-%d" % rank, Bye(rank, 0, 3, "finished"), {}) == []
    assert host.core.all_finished


def test_who_was_refused_does_not_keep_a_run_that_is_over() -> None:
    host, _ = hosted(1)
    assert isinstance(
        host.core.handle(b"x", Hello(VERSION, "r", 5, 1, FIELDS, {}, 0, 10, True), {})[0].message, Refusal
    )  # type: ignore[union-attr]
    host.core.handle(b"rank-0", Bye(0, host.epoch[0], 3, "finished"), {})
    assert host.core.all_finished


def test_messages_that_clients_do_not_send_are_ignored() -> None:
    host, _ = hosted()
    assert host.core.handle(b"rank-0", Advice(action=Action.STOP), {}) == []


def test_fields_that_cannot_be_used_are_refused_at_the_handshake() -> None:
    host = Host(make_core(ScriptedTask()), 0)
    bad = (msgspec.structs.replace(FIELDS[0], dtype="|O"),)
    [send] = host.core.handle(b"a", Hello(VERSION, "r", 0, 1, bad, {}, 0, 10, True), {})
    assert isinstance(send, Send) and isinstance(send.message, Refusal) and "|O" in send.message.reason
    assert host.core.protocol.agreed is None
