//! The table at the end.

use std::fs;

use llm_data::write_jsonl;
use llm_model::{LoraConfig, ModelConfig};
use llm_synthetic::{Split, World, WorldConfig};
use llm_train::recipes::{DistillInputs, DistillRecipe, DistillReport, distill_report, measure_decode};

use super::{Fixture, metrics};

#[test]
fn the_table_compares_teacher_student_control_and_quantised_student() {
    let fixture = Fixture::new();
    // q8_0 has blocks of 32 values.
    let student = ModelConfig { hidden_size: 32, intermediate_size: 64, ..Fixture::recipe().student };
    let recipe = DistillRecipe { control: true, epochs: 12, eval_batches: 0, student, ..Fixture::recipe() };
    let world = World::new(WorldConfig { corpus_bytes: 1000, ..WorldConfig::default() });
    write_jsonl(&fixture.path("tasks.jsonl"), &world.tasks(Split::HeldOut, 3)).unwrap();
    let inputs = DistillInputs { tasks: Some(fixture.path("tasks.jsonl")), ..fixture.inputs() };
    fixture.run(&recipe, &inputs, "run").unwrap();
    let (run, control) = (fixture.path("run"), fixture.path("run").join("control"));
    assert_eq!(metrics(&run, "tokens"), metrics(&control, "tokens"), "equal steps on equal data");
    assert!(metrics(&control, "kl_loss").is_empty());
    let report = distill_report(&recipe, &inputs, &run, &measure_decode).unwrap();
    let names: Vec<&str> = report.rows.iter().map(|row| row.model.as_str()).collect();
    assert_eq!(names, ["teacher", "student", "student without teacher", "student in q8_0"]);
    let [teacher, student, alone, quantised] = report.rows.as_slice() else { unreachable!() };
    assert!(teacher.kl.abs() < 1e-6, "{}", teacher.kl);
    let logged = metrics(&run, "eval_kl");
    assert!((student.kl - logged[logged.len() - 1]).abs() < 1e-5, "{} and {logged:?}", student.kl);
    assert!((quantised.kl - student.kl).abs() < 0.05 && quantised.kl != student.kl);
    assert!(alone.kl > student.kl, "{} without the teacher, {} with it", alone.kl, student.kl);
    assert_eq!((student.parameters, student.bytes), (alone.parameters, alone.bytes));
    assert!(student.parameters != teacher.parameters && quantised.bytes < student.bytes);
    for row in &report.rows {
        let [median, low, high] = row.tokens_per_second;
        assert!(low > 0. && low <= median && median <= high && row.task_score.is_some(), "{row:?}");
    }
    let stale = fs::read(run.join("student-q8_0.gguf")).unwrap();
    fs::write(run.join("student-q8_0.gguf"), "of a shorter run").unwrap();
    let report = distill_report(&recipe, &inputs, &run, &measure_decode).unwrap();
    assert!(fs::read(run.join("student-q8_0.gguf")).unwrap() == stale, "written again, as a run can be extended");
    let json = fs::read_to_string(run.join("distillation.json")).unwrap();
    assert_eq!(serde_json::from_str::<DistillReport>(&json).unwrap().rows.len(), 4);
    assert_eq!(fs::read_to_string(run.join("distillation.md")).unwrap(), report.table());
    fs::write(fixture.path("broken.jsonl"), "{}\n").unwrap();
    let broken = DistillInputs { tasks: Some(fixture.path("broken.jsonl")), ..inputs };
    let message = fixture.run(&recipe, &broken, "none").unwrap_err().to_string();
    assert!(message.contains("broken.jsonl line 1") && !fixture.path("none").exists(), "{message}");
}

/// The student is `base` with an adapter, merged for the table.
#[test]
fn the_table_of_an_adapter_is_that_of_the_merged_model() {
    let fixture = Fixture::new();
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let recipe = DistillRecipe { lora: Some(lora), epochs: 3, eval_batches: 0, ..Fixture::recipe() };
    let inputs = DistillInputs { student: Some(fixture.path("base")), ..fixture.inputs() };
    fixture.run(&recipe, &inputs, "run").unwrap();
    let report = distill_report(&recipe, &inputs, fixture.path("run"), &measure_decode).unwrap();
    let logged = metrics(&fixture.path("run"), "eval_kl");
    assert!((report.rows[1].kl - logged[logged.len() - 1]).abs() < 1e-5, "{} and {logged:?}", report.rows[1].kl);
    assert_eq!(report.rows.len(), 3);
}
