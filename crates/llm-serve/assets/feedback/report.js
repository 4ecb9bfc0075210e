// The report of all judgements, which names the models.
import { $, begin, config, enter, me, notice, persist } from "./common.js";

async function show() {
  try {
    $("report").textContent = (await persist("api/report", {})).report;
    notice("");
  } catch (error) { notice(`No report: ${error.message}`); }
}
$("reload").onclick = show;
$("who").onclick = async () => { await enter(); $("who").textContent = config.tokens ? "Token" : me.name; show(); };
begin().then(show).catch((error) => notice(`The page cannot begin: ${error.message}`));
