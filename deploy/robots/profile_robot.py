"""A robot to copy: it consumes commands from Kafka and does to Postgres what they ask for.

    DATABASE_URL=postgres://… python profile_robot.py --brokers localhost:9092 --topic commands.profile

Every command ends in one transaction, which holds all of this or nothing:
  - onelog.context, first, so that each record of the transaction carries the command's correlation id;
  - the command's id: a command that Kafka delivers again is found there, and nothing is done;
  - the rows;
  - onelog.emit: the answer, success or failure, which the browser hears by the gateway.
Kafka learns that a command is done only after that COMMIT. So a robot may be killed at any moment, and
several may run: each command has one effect and one answer.

A command that can't be carried out, whatever is wrong with it, is answered as a failure and done with.
An outage of Postgres is no fault of the command: it is waited out.

Commands of one document keep their order, as its id is the record's key. Those of different documents
do not: a website may be here before its profile. Its row has no foreign key, and the page's SQL
(connectors/profile_page.toml) joins the two when both are there. Nothing is parked or tried again.
"""

import argparse
import json
import logging
import os
import re
import signal
import time
from urllib.parse import urlsplit

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition

log = logging.getLogger("profile_robot")
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PRUNE_EVERY_SECONDS = 3600
# Longer than the commands' topic keeps them: what is gone from there is not delivered again.
PRUNE = """DELETE FROM robot.handled_command WHERE handled_at < now() - interval '8 days';
    DELETE FROM profile_website AS website WHERE created_at < now() - interval '8 days'
    AND NOT EXISTS (SELECT FROM profile WHERE profile.id = website.profile_id)"""


class Refused(Exception):
    """The command can't be carried out: a reason for programs, and a sentence for people."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


class Command:
    """A record of the topic. Nothing in it is trusted, and making this of it never fails."""

    def __init__(self, message):
        headers = {name: value.decode(errors="replace") for name, value in message.headers() or [] if value}
        try:
            body = json.loads(message.value())
        except (TypeError, ValueError, RecursionError):
            body = None
        self.body = body if isinstance(body, dict) else None

        def known(header):
            value = headers.get(header) or (self.body or {}).get(header.replace("-", "_"))
            return value if isinstance(value, str) and ID.fullmatch(value) else None

        self.id = known("id") or f"{message.topic()}/{message.partition()}/{message.offset()}"
        self.type, self.correlation_id = known("type"), known("correlation-id")
        self.session_id, self.document_id = known("session-id"), known("document-id")
        self.traceparent = headers.get("traceparent", "").replace("\0", "") or None
        self.owner = None  # once the session was found

    def id_of(self, field):
        value = self.body.get(field)
        if not isinstance(value, str) or not ID.fullmatch(value):
            raise Refused("invalid", f"{field}: 1 to 128 letters, digits and . _ : - are needed")
        return value

    def text(self, field, least, most, *otherwise):
        value = self.body.get(field)
        if value is None and otherwise:
            return otherwise[0]
        if not isinstance(value, str) or not least <= len(value.strip()) <= most or "\0" in value:
            raise Refused("invalid", f"{field}: a text of {least} to {most} characters is needed")
        return value.strip()


def create_profile(db, command):
    name, headline = command.text("name", 1, 200), command.text("headline", 0, 300, "")
    insert = "INSERT INTO profile (id, owner, name, headline) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
    if db.execute(insert, [command.id_of("document_id"), command.owner, name, headline]).rowcount == 0:
        raise Refused("exists", "there is a profile with this id: send UpdateProfile, or make a new id")
    return "ProfileCreated"


def update_profile(db, command):
    name, headline = command.text("name", 1, 200, None), command.text("headline", 0, 300, None)
    update = """UPDATE profile SET name = coalesce(%s, name), headline = coalesce(%s, headline),
                revision = revision + 1, updated_at = now() WHERE id = %s AND owner = %s"""
    if db.execute(update, [name, headline, command.id_of("document_id"), command.owner]).rowcount == 0:
        raise Refused("unknown_profile", "there is no profile of yours with this id: send CreateProfile first")
    return "ProfileUpdated"


def add_website(db, command):
    url, title = command.text("url", 1, 2000), command.text("title", 0, 200, "")
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused("invalid", "url: begin it with http:// or https://")
    row = [command.id_of("document_id"), command.id_of("profile_id"), command.owner, url, title]
    insert = "INSERT INTO profile_website (id, profile_id, owner, url, title) VALUES (%s, %s, %s, %s, %s)"
    if db.execute(insert + " ON CONFLICT DO NOTHING", row).rowcount == 0:
        raise Refused("exists", "there is a website with this id: make a new id")
    return "WebsiteAdded"


COMMANDS = {"CreateProfile": create_profile, "UpdateProfile": update_profile, "AddWebsite": add_website}


def carry_out(db, command):
    """The answer's type, or Refused."""
    if command.body is None:
        raise Refused("invalid", "a command is a JSON object")
    if command.type not in COMMANDS:
        raise Refused("unknown_type", f"type: one of {', '.join(COMMANDS)} is needed")
    session = "SELECT username FROM auth.session WHERE id = %s AND expires_at > now()"
    found = db.execute(session, [command.session_id]).fetchone()
    if found is None:
        raise Refused("unknown_session", "the session is unknown or over: log in again")
    command.owner = found[0]
    return COMMANDS[command.type](db, command)


def handle(db, command):
    with db.transaction():
        db.execute("SELECT onelog.context(%s, %s)", [command.correlation_id, command.traceparent])
        mark = "INSERT INTO robot.handled_command (id) VALUES (%s) ON CONFLICT DO NOTHING"
        if db.execute(mark, [command.id]).rowcount == 0:
            return log.info("command %s again: it was handled before", command.id)
        ids = {name: getattr(command, name) for name in ("correlation_id", "session_id", "document_id")}
        answer = {"status": "success", "command": command.id} | ids
        try:
            with db.transaction():  # a savepoint: a failure undoes the rows, and not the answer
                kind = carry_out(db, command)
        except Exception as error:
            # Of what Postgres says, only this is the command's own fault.
            if isinstance(error, psycopg.Error) and not isinstance(error, (psycopg.DataError, psycopg.IntegrityError)):
                raise
            if not isinstance(error, Refused):
                log.exception("command %s of type %s", command.id, command.type)
                error = Refused("invalid", "the command could not be carried out")
            kind = "CommandFailed"
            answer |= {"status": "failure", "reason": error.reason, "detail": str(error)}
        emit = "SELECT onelog.emit('response', %s, %s, %s)"
        db.execute(emit, [command.document_id or command.id, kind, json.dumps(answer)])
    log.info("command %s: %s", command.id, kind)


def serve(database, consumer, going):
    db, pause, prune_at = None, 0.1, 0.0
    while going:
        message = consumer.poll(0.5)
        if message is not None and message.error():
            log.warning("Kafka: %s", message.error())
            continue
        try:
            db = db or psycopg.connect(database, autocommit=True, application_name="profile_robot")
            if time.monotonic() >= prune_at:
                db.execute(PRUNE)
                prune_at = time.monotonic() + PRUNE_EVERY_SECONDS
            if message is not None:
                handle(db, Command(message))
            pause = 0.1
        except psycopg.Error as error:
            log.warning("Postgres: %s; again in %.1f s", error, pause)
            time.sleep(pause)
            db, pause = None, min(pause * 2, 5)
        try:
            if message is not None and db is None:
                consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
            elif message is not None:
                consumer.store_offsets(message)
        except KafkaException as error:
            # The partition is another robot's now, which gets the command again and knows its id.
            log.info("Kafka: %s", error)
    if db is not None:
        db.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    arguments = argparse.ArgumentParser(description="carries out commands about profiles")
    for name, default in [("brokers", "localhost:9092"), ("topic", "commands.profile"), ("group", "profile-robot")]:
        arguments.add_argument(f"--{name}", default=default)
    options = arguments.parse_args()
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    settings = {"bootstrap.servers": options.brokers, "group.id": options.group, "auto.offset.reset": "earliest"}
    # Once a second Kafka is told of the offsets that were stored, which is after their COMMIT. A robot that
    # died is replaced after 10 s.
    settings |= {"enable.auto.offset.store": False, "auto.commit.interval.ms": 1000, "session.timeout.ms": 10000}
    consumer = Consumer(settings)
    consumer.subscribe([options.topic])
    serve(os.environ["DATABASE_URL"], consumer, going)
    consumer.close()
