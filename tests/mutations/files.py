"""What is promised of files and attachments, broken one by one."""

from tests.mutations.mutation import Mutation

FILES = "tests/acceptance/test_files.py::"
ATTACHMENTS = "tests/acceptance/test_attachments.py::"
MEDIA_TYPES = "tests/unit/shared/test_media_types.py::"

MUTATIONS = [
    Mutation(
        "bytes that stay behind when their last file goes",
        "shared/migrations/versions/0027_files.py",
        "        DELETE FROM file_contents\n        WHERE id = OLD.content_id AND NOT EXISTS",
        "        DELETE FROM file_contents\n        WHERE false AND NOT EXISTS",
        FILES + "test_the_same_bytes_are_kept_once_and_go_with_the_last_file",
    ),
    Mutation(
        "a file that expires although a run uses it",
        "shared/maintenance/retention.py",
        "SELECT id FROM files WHERE NOT in_use AND",
        "SELECT id FROM files WHERE",
        FILES + "test_a_file_that_nothing_uses_expires_with_its_bytes",
    ),
    Mutation(
        "a file that is believed whatever it holds",
        "shared/media_types.py",
        "            fits = check(self._head)\n",
        "            fits = True\n",
        MEDIA_TYPES + "test_the_content_of_every_other_type_is_refused",
    ),
    Mutation(
        "files of others, for whoever knows their ids",
        "shared/attachments.py",
        "    WHERE id = ANY(CAST(:ids AS uuid[])) AND tenant = :tenant AND user_id = :user_id\n",
        "    WHERE id = ANY(CAST(:ids AS uuid[]))\n",
        ATTACHMENTS + "test_what_cannot_be_attached_is_refused_where_it_stands",
    ),
    Mutation(
        "bytes in what is stored of a run",
        "worker/execution/files.py",
        'content_of(name, b"", file.media_type, file)',
        "content_of(name, file.data, file.media_type, file)",
        ATTACHMENTS + "test_a_thread_is_given_the_same_bytes_again_and_nothing_else_holds_them",
    ),
    Mutation(
        "what a tool makes, kept where no caller learns of it",
        "worker/execution/answer.py",
        '                    self._listener.tell({"event": "file", **shown})\n',
        "                    pass\n",
        ATTACHMENTS + "test_what_a_tool_makes_is_a_file_of_the_user",
    ),
]
