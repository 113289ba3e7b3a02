"""The laws of the relay, and how each is broken."""

from tests.mutations.mutation import Mutation

RESPONSE = "tests/unit/api/streaming/test_response.py::"

MUTATIONS = [
    Mutation(
        "read before the subscription is acknowledged",
        "api/streaming/relay.py",
        """            self._hub.want(channel)
""",
        """            self._hub.want(channel)
            self._read(channel)
            self._hub._subscribed = lambda _: None
""",
        "tests/unit/api/streaming/test_relay.py::test_what_is_told_between_subscription_and_read_is_not_missed",
    ),
    Mutation(
        "write without the compare",
        "shared/event_log.py",
        "    if top_a > last_a then return 'fenced' end\n",
        "",
        "tests/unit/shared/test_event_log.py::test_a_zombie_is_fenced_and_not_heard",
    ),
    Mutation(
        "publish without the compare",
        "shared/event_log.py",
        "    if top_a > last_a then return 'fenced' end\n",
        "    if top_a > last_a then redis.call('PUBLISH', log, ARGV[first] .. ' ' .. ARGV[last]) return 'fenced' end\n",
        "tests/unit/shared/test_event_log.py::test_a_zombie_is_fenced_and_not_heard",
    ),
    Mutation(
        "append although the log has lost what was before",
        "shared/event_log.py",
        "    if older(top_a, top_n, wrote_a, wrote_n) then return 'lost' .. afresh end\n",
        "",
        "tests/unit/shared/test_event_log.py::test_a_log_that_lost_what_was_written_refuses_more_of_it",
    ),
    Mutation(
        "append a second time what was resent",
        "shared/event_log.py",
        "    if top_a == last_a and top_n >= last_n then return 'duplicate' end\n",
        "",
        "tests/unit/shared/test_event_log.py::test_a_resent_append_is_a_duplicate_and_nothing_is_twice",
    ),
    Mutation(
        "a log that lives for ever",
        "shared/event_log.py",
        "    redis.call('EXPIRE', log, ttl)\n",
        "",
        "tests/unit/shared/test_event_log.py::test_what_is_appended_is_announced_in_one_message_just_so",
    ),
    Mutation(
        "no canary",
        "api/streaming/subscriptions.py",
        "if silence > SILENCE_SECONDS:",
        "if silence < 0:",
        "tests/integration/api/streaming/test_subscriptions.py::test_a_connection_that_went_silent_is_replaced",
    ),
    Mutation(
        "no reconnect",
        "api/streaming/subscriptions.py",
        "            await asyncio.sleep(BACK_OFF_SECONDS)\n",
        "            return\n",
        "tests/integration/api/streaming/test_subscriptions.py::test_a_killed_connection_is_replaced_and_every_channel_acknowledged_again",
    ),
    Mutation(
        "no acknowledgement for who comes as the last one leaves",
        "api/streaming/subscriptions.py",
        "added, dropped = list(self._asked), ",
        "added, dropped = list(self._wanted - self._sent), ",
        "tests/integration/api/streaming/test_subscriptions.py::test_what_is_dropped_and_wanted_in_one_breath_is_acknowledged_again",
    ),
    Mutation(
        "no second try of a read",
        "api/streaming/relay.py",
        """        for followed in some:
            followed.again = True
        await asyncio.sleep(READ_AGAIN_SECONDS)
""",
        "        await asyncio.sleep(0)\n",
        "tests/unit/api/streaming/test_relay.py::test_a_read_that_failed_is_tried_again",
    ),
    Mutation(
        "no end from the row",
        "api/streaming/relay.py",
        "                if not followed.feed.ended and now - followed.feed.touched > QUIET_SECONDS\n",
        "                if followed.feed.touched > now\n",
        "tests/faults/test_relay_under_fire.py::test_a_run_ends_for_its_readers_though_redis_never_comes_back",
    ),
    Mutation(
        "an end without the last number",
        "worker/execution/job.py",
        "replace(ending, last_entry=attempt.telling.last_entry)",
        "replace(ending)",
        "tests/faults/test_relay_under_fire.py::test_a_run_ends_for_its_readers_though_redis_never_comes_back",
    ),
    Mutation(
        "an end that is believed with another text",
        "api/streaming/run_feed.py",
        ' and digest(self._base[1]) == body["digest"]',
        "",
        "tests/unit/api/streaming/test_run_feed.py::test_an_end_with_another_text_is_not_believed",
    ),
    Mutation(
        "a delta against a missing base",
        "api/streaming/run_feed.py",
        """        elif self._base is None:
            return
""",
        """        elif self._base is None:
            before, whole = None, grown.of(self.text.whole if self.text else "")
""",
        "tests/unit/api/streaming/test_run_feed.py::test_a_hole_in_the_log_is_a_gap_and_growth_waits_for_a_whole_text",
    ),
    Mutation(
        "growth of one attempt out of another",
        "api/streaming/run_feed.py",
        """        self._base = self._thought = None
        self.text = None
""",
        """        self.text = None
""",
        "tests/unit/api/streaming/test_run_feed.py::test_growth_of_a_new_attempt_never_grows_out_of_the_old_one",
    ),
    Mutation(
        "a hole that nobody is told of",
        "api/streaming/run_feed.py",
        """                self._tell(Event(Id(entry.id.attempt, entry.id.n - 1), "gap", {}))
            self.taken""",
        """            self.taken""",
        "tests/unit/api/streaming/test_run_feed.py::test_a_hole_in_the_log_is_a_gap_and_growth_waits_for_a_whole_text",
    ),
    Mutation(
        "a log that could not be read and is taken for one that has expired",
        "api/streaming/relay.py",
        "log_was_read=reading.error is None",
        "log_was_read=True",
        "tests/unit/api/streaming/test_relay.py::test_who_asks_for_an_ended_run_is_told_of_a_gap_only_where_its_log_could_not_be_read",
    ),
    Mutation(
        "a follower that is not told what was forgotten",
        "api/streaming/run_feed.py",
        "self._forgotten = self._events.pop(0).id",
        "self._events.pop(0)",
        "tests/unit/api/streaming/test_run_feed.py::test_forgotten_events_are_recalled_from_the_log_with_the_text_in_its_place",
    ),
    Mutation(
        "a text that takes the place of an event",
        "worker/execution/publisher.py",
        "if self._waiting and isinstance(self._waiting[-1], str):",
        "if self._waiting:",
        "tests/unit/worker/execution/test_publisher.py::test_texts_that_wait_are_replaced_and_events_keep_their_place",
    ),
    Mutation(
        "old ids again after a lost log",
        "worker/execution/publisher.py",
        """        self._base = self._thought = None
        self._wrote = BEFORE_ALL
        self._waiting = [*events""",
        """        self._base = self._thought = None
        self._wrote, self.last_entry = BEFORE_ALL, 0
        self._waiting = [*events""",
        "tests/unit/worker/execution/test_publisher.py::test_a_lost_log_goes_on_with_a_whole_text_under_new_ids",
    ),
    Mutation(
        "growth into a lost log",
        "worker/execution/publisher.py",
        """        self._base = self._thought = None
        self._wrote = BEFORE_ALL
        self._waiting = [*events""",
        """        self._wrote = BEFORE_ALL
        self._waiting = [*events""",
        "tests/unit/worker/execution/test_publisher.py::test_a_lost_log_goes_on_with_a_whole_text_under_new_ids",
    ),
    Mutation(
        "line separators that are not escaped",
        "api/streaming/sse_and_ndjson.py",
        r'"\x85\u2028\u2029"',
        r'"\x85"',
        "tests/unit/api/streaming/test_sse_and_ndjson.py::test_a_line_of_ndjson_is_one_line_for_every_splitter",
    ),
    Mutation(
        "growth that drops more than ASCII",
        "shared/text_delta.py",
        "not dropped.isascii() or ",
        "",
        "tests/unit/shared/test_text_delta.py::test_a_dropped_emoji_means_the_whole_text",
    ),
    Mutation(
        "deltas held back while the model pauses",
        "worker/models/merging.py",
        "timeout=seconds_left(self.window_seconds))",
        "timeout=None)",
        "tests/unit/worker/models/test_merging.py::test_a_model_that_pauses_holds_nothing_back",
    ),
    Mutation(
        "a stalled reader that is kept",
        "api/server/http_protocol.py",
        "if self._checks_stalled >= CHECKS_A_STALL:",
        "if self._checks_stalled < 0:",
        "tests/faults/test_relay_under_fire.py::test_readers_that_never_read_cost_little_and_delay_nobody",
    ),
    Mutation(
        "take for a piece of text what says more",
        "worker/models/openai_client.py",
        "return all(field in fields or not value for field, value in said.items())",
        "return True",
        "tests/unit/worker/models/test_openai_client.py::test_whatever_is_said_and_however_it_is_cut_it_says_the_same",
    ),
    Mutation(
        "join the texts of two items",
        "worker/models/openai_client.py",
        "before.same == piece.same",
        "True",
        "tests/unit/worker/models/test_openai_client.py::test_whatever_is_said_and_however_it_is_cut_it_says_the_same",
    ),
    Mutation(
        "hold a provider's first piece back for a window",
        "worker/models/openai_client.py",
        "            if speaking:  #",
        "            if events:  #",
        "tests/unit/worker/models/test_openai_client.py::test_the_first_piece_comes_at_once_and_the_rest_is_read_in_windows",
    ),
    Mutation(
        "keep no silent stream alive",
        "api/streaming/wakeups.py",
        "if since < before or waiting.done():",
        "if waiting.done():",
        "tests/unit/api/streaming/test_run_feed.py::test_who_has_waited_for_long_is_woken_and_only_then",
    ),
    Mutation(
        "a connection to Redis for each reader who comes",
        "shared/redis.py",
        "max_connections=connections, ",
        "",
        "tests/acceptance/test_processes.py::test_readers_who_come_all_at_once_share_a_few_connections",
    ),
    Mutation(
        "let a message that cannot be read break the connection of all streams",
        "api/streaming/subscriptions.py",
        "        except Exception as error:  # noqa: BLE001  (whatever was published there)\n",
        "        except ConnectionError as error:\n",
        "tests/integration/test_odd_items.py::test_who_hears_badly_does_not_end_the_connection_of_the_others",
    ),
    Mutation(
        "let one key of another type keep all logs of a round trip from being read",
        "shared/event_log.py",
        """    if is_wrong_type(log):
        refuse(BadInput.LOG_KEY, where, log)
        return []
""",
        "",
        "tests/integration/test_odd_items.py::test_a_log_key_of_another_type_is_empty_to_readers_and_removed_by_the_writer",
    ),
    Mutation(
        "believe a log that says that a later attempt has begun",
        "worker/execution/publisher.py",
        "            if outcome in {Outcome.LOST, Outcome.FENCED}:\n",
        "            if outcome is Outcome.LOST:\n",
        "tests/integration/test_odd_items.py::test_an_id_that_no_attempt_wrote_ends_no_attempt",
    ),
    Mutation(
        "let a message that is no id end the worker",
        "worker/execution/cancellations.py",
        "    except ValueError:  # Anything that reaches this Redis can publish here.\n",
        "    except KeyError:\n",
        "tests/integration/test_odd_items.py::test_a_worker_lives_with_what_is_published_to_it_and_queued_for_it",
    ),
    Mutation(
        "a scope emptied while middlewares hold it",
        "api/streaming/response.py",
        "if name.startswith(_OF_THE_HANDLING)]",
        'if name not in ("type", "method")]',
        RESPONSE + "test_the_scope_of_a_stream_stays_whole_for_middleware",
    ),
    Mutation(
        "a follower of a connection that was lost before",
        "api/server/http_protocol.py",
        "    if scope.get(_LOST) is True:\n",
        "    if scope.get(_LOST) == 1.5:\n",
        RESPONSE + "test_a_reader_is_told_that_the_connection_is_lost_also_if_it_was_lost_before",
    ),
    Mutation(
        "let a member of a lane that is no call end the worker",
        "worker/queue/consumer.py",
        "        refuse(BadInput.QUEUE_ENTRY, lane.decode(), member)\n        return None",
        "        raise",
        "tests/integration/test_odd_items.py::test_a_worker_lives_with_what_is_published_to_it_and_queued_for_it",
    ),
]
