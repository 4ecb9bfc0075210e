//! Tests of the readers of conversations, texts and prompts.

use super::*;

fn strict() -> ReadOptions {
    ReadOptions { strict: true, ..ReadOptions::default() }
}

fn read_with(content: &str, options: &ReadOptions) -> Result<TrainingRows> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, content).unwrap();
    read_training_rows(&path, options)
}

fn read(content: &str) -> Result<TrainingRows> {
    read_with(content, &strict())
}

/// The conversation of a file with one row.
fn one(content: &str) -> Conversation {
    match &read(content).unwrap().rows[..] {
        [TrainingRow::Conversation(conversation)] => conversation.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_format_gives_the_same_conversation() {
    let expected = Conversation::from(vec![ChatMessage::user("q"), ChatMessage::assistant("a")]);
    for line in [
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        r#"{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": ""}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"prompt": "q", "completion": "a"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": "a", "label": null, "messages": null}"#,
        r#"{"question": "q", "answer": "a"}"#,
        r#"{"instruction": "q", "input": "", "output": "a", "history": []}"#,
    ] {
        assert_eq!(one(line), expected, "{line}");
    }
    let with_input = one(r#"{"instruction": "Add.", "input": "1 2", "output": "3"}"#);
    assert_eq!(with_input.messages[0].text(), "Add.\n\n1 2");
    let earlier = r#"{"instruction": "q", "output": "a", "system": "s", "history": [["x", "y"]]}"#;
    let all = [ChatMessage::system("s"), ChatMessage::user("x"), ChatMessage::assistant("y"), ChatMessage::user("q")];
    assert_eq!(one(earlier).messages[..4], all);
}

#[test]
fn a_prompt_is_a_conversation_without_its_last_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.jsonl");
    for line in [
        r#"{"prompt": "q"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}]}"#,
        r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "completion": "a"}"#,
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"question": "q", "answer": "a"}"#,
    ] {
        std::fs::write(&path, line).unwrap();
        let prompts = read_prompts(&path, &strict()).unwrap().0;
        let row = serde_json::from_str(line).unwrap();
        assert_eq!(prompts, [(vec![ChatMessage::user("q")].into(), row)], "{line}");
    }
    std::fs::write(&path, r#"{"prompt": []}"#).unwrap();
    assert!(read_prompts(&path, &strict()).unwrap_err().to_string().contains("no user message"));
    std::fs::write(&path, r#"{"prompt": 3}"#).unwrap();
    assert!(read_prompts(&path, &strict()).unwrap_err().to_string().contains("line 1: \"prompt\" is a number"));
}

#[test]
fn errors_name_the_line_and_the_expected_content() {
    for (content, part) in [
        (
            "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"promt\": \"q\"}",
            "line 2: an object with the keys [\"promt\"]",
        ),
        (r#"{"messages": [{"role": "robot", "content": "q"}]}"#, "must be system, user or assistant"),
        (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no assistant message"),
        (r#"{"messages": [{"role": "user"}]}"#, "message 1: \"content\" is missing"),
        (r#"{"messages": "q"}"#, "\"messages\" is a string; it must be a list of messages"),
        (r#"{"messages": null}"#, "\"messages\" is null"),
        (r#"{"prompt": 1, "completion": "a"}"#, "\"prompt\" is a number; it must be a string or a list of messages"),
        (r#"{"prompt": "q", "completion": null}"#, "\"completion\" is null"),
        (
            r#"{"prompt": [{"role": "user", "content": 1}], "completion": "a"}"#,
            "\"prompt\": message 1: \"content\" is a number",
        ),
        (r#"{"question": "q", "answer": ["a"]}"#, "\"answer\" is a list; it must be a string"),
        (r#"{"instruction": "q", "input": 2, "output": "a"}"#, "\"input\" is a number"),
        (
            r#"{"prompt": "q", "completion": "a", "label": false}"#,
            "\"label\" is false: rows with a label are unpaired preferences (KTO)",
        ),
        (r#"{"prompt": "q", "completion": "a", "tools": "x"}"#, "\"tools\" is a text that is not JSON"),
        (r#"{"prompt": "q", "completion": "a", "images": ["x"]}"#, "\"images\" is not supported"),
        (r#"{"prompt": "q", "completion": "a", "weight": 0}"#, "\"weight\" of a row is 0"),
        (r#"{"text": "q", "system": "s"}"#, "\"system\" has no effect on a row with \"text\""),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#, "preferences are data of `llm-train reward`"),
        ("3", "this one is a number"),
        (r#"["q", "a"]"#, "this one is a string"),
        ("\n", "no conversations"),
    ] {
        let message = read(content).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("data.jsonl"), "{message}");
    }
}

#[test]
fn warnings_are_counted() {
    let lines = [
        r#"{"prompt": "q", "completion": "a", "source": "x", "id": 1}"#,
        r#"{"prompt": " Q ", "completion": "A", "id": 2}"#,
        r#"{"prompt": "q", "completion": "b"}"#,
        r#"{"prompt": "r", "completion": " "}"#,
        r#"{"prompt": "", "completion": ""}"#,
        r#"[{"role": "assistant", "content": "hello"}]"#,
        r#"[{"role": "system", "content": "s"}, {"role": "assistant", "content": "hello", "mood": "z"}]"#,
    ];
    let warnings = read(&lines.join("\n")).unwrap().warnings;
    let ignored_keys = ["mood", "source"].map(str::to_owned).into();
    let duplicates = Duplicates { exact: 1, same_prompt: 1 };
    let expected =
        Warnings { records: 7, duplicates, empty_answers: 2, without_question: 2, ignored_keys, ..Warnings::default() };
    assert_eq!(warnings, expected);
}

#[test]
fn the_prompt_of_a_conversation_is_the_messages_before_the_first_answer() {
    let of = |messages: &[ChatMessage]| Conversation::from(messages.to_vec()).keys();
    let (q, a) = (ChatMessage::user("q"), ChatMessage::assistant("a"));
    let short = of(&[q.clone(), a.clone()]);
    let long = of(&[q.clone(), a.clone(), ChatMessage::user("r"), ChatMessage::assistant("b")]);
    assert_eq!(short.prompt, long.prompt, "the longer conversation contains the answer of the shorter one");
    assert_ne!(short.whole, long.whole);
    let empty_prompt = |text: &str| of(&[ChatMessage::user(" "), ChatMessage::assistant(text)]);
    assert_ne!(empty_prompt("a").prompt, empty_prompt("b").prompt);
}

#[test]
fn a_table_with_other_columns_is_refused_with_a_way_to_name_them() {
    let dir = tempfile::tempdir().unwrap();
    for (content, part) in [
        (
            "Frage,Antwort\nq,a\nr,b\n",
            r#"by --set data.columns.prompt="Frage" --set data.columns.completion="Antwort""#,
        ),
        ("Frage;Antwort\nq;a\n", "separated by another character than the comma"),
        ("Satz\nq\n", r#"as plain text by --set data.columns.text="Satz""#),
    ] {
        let path = dir.path().join("data.csv");
        std::fs::write(&path, content).unwrap();
        let message = read_training_rows(&path, &ReadOptions::default()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert_eq!(message.matches("is not a conversation").count(), 1, "{message}");
    }
}
